"""A FastAPI hello-world with the server settings of this service: the cost of HTTP alone.

python -m benchmarks.harness.hello PORT
"""

import sys

import uvicorn
from fastapi import FastAPI

from benchmarks.harness.processes import HOST
from service.server import uvicorn_server


def main(port: int) -> None:
    app = FastAPI()

    @app.get("/")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    config = uvicorn_server.config(app)
    config.host, config.port, config.lifespan = HOST, port, "off"
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
