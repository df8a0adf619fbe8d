"""Generate, edit and stream with the client of OpenAI (`pip install openai`), against this service.

usage: python examples/openai_client.py PROMPT OUT.png
"""

import base64
import os
import sys

import openai


def main(prompt: str, out: str) -> None:
    service = os.environ.get("IGN_BASE_URL", "http://127.0.0.1:8000")
    client = openai.OpenAI(base_url=f"{service}/v1", api_key=os.environ.get("IGN_API_KEY", "none"))
    answer = client.images.generate(prompt=prompt, size="256x256")
    image = base64.b64decode((answer.data or [])[0].b64_json or "")
    with open(out, "wb") as file:
        file.write(image)
    print(answer.size, (answer.data or [])[0].revised_prompt)
    edited = client.images.edit(image=image, prompt="the model reads no words", size="256x256")
    print(edited.size, (edited.data or [])[0].revised_prompt)
    for event in client.images.generate(
        prompt=prompt, stream=True, partial_images=3, extra_body={"steps": 8}
    ):
        print(event.type, len(event.b64_json))


if __name__ == "__main__":
    main(*sys.argv[1:])
