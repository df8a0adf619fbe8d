"""Make an image real with the client of Hugging Face (`pip install huggingface_hub`), against this
service.

usage: python examples/hugging_face.py IN.png OUT.png
"""

import os
import sys

from huggingface_hub import InferenceClient


def main(path: str, out: str) -> None:
    service = os.environ.get("IGN_BASE_URL", "http://127.0.0.1:8000")
    client = InferenceClient(
        model=f"{service}/project?model=mnist", token=os.environ.get("IGN_API_KEY")
    )
    client.image_to_image(path, num_inference_steps=2).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
