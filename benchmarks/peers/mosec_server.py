"""mosec: a Rust front, worker processes behind it, batches formed in front.

Settings: one stage that decodes, computes and encodes, as a second stage would cost a second copy
of every body between processes; `num` worker processes, one for each copy of the model;
`max_batch_size` and `max_wait_time` (https://mosecorg.github.io/mosec/reference/interface.html);
bodies as bytes instead of JSON, by overriding `deserialize` and `serialize`; a queue beyond the
number of connections, and no log line for each request
(https://mosecorg.github.io/mosec/reference/arguments.html).
"""

import os

from mosec import Server, Worker

from benchmarks.peers import common


class Function(Worker):
    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self.function = common.Function()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        return self.function(data)


if __name__ == "__main__":
    os.environ |= {
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_PORT": str(common.setting("PORT")),
        "MOSEC_CAPACITY": "4096",
        "MOSEC_TIMEOUT": "30000",
        "MOSEC_LOG_LEVEL": "warning",
    }
    server = Server()
    server.append_worker(
        Function,
        num=common.setting("PROCESSES"),
        max_batch_size=common.setting("MAX_BATCH"),
        max_wait_time=common.setting("WAIT_MS"),
        route="/predict",
    )
    server.run()
