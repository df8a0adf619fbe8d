"""Apply f until the picture stops changing, and print the steps: `python examples/refine.py PICTURE
OUT.png`.
"""

import sys

from ign_client import Client, Done, Step

# mean change of a step in the model's range −1…1; less than one grey level of 255
TOLERANCE = 0.005


def main(picture: str, target: str) -> None:
    recorded = [1, 2, 3, 5, 10, 20, 50, 100]
    with Client() as client:
        for event in client.stream_project(
            picture, steps=300, tolerance=TOLERANCE, record=recorded, score=True
        ):
            if isinstance(event, Step):
                print(f"step {event.step}: changed by {event.change:.4f}")
            if isinstance(event, Done):
                (image,) = event.answer
                print(
                    f"{'fixed point' if image.converged else 'still moving'}, drift "
                    f"{image.drift:.4f}"
                )
                image.save(target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
