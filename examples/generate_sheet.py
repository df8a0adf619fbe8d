"""Generate a sheet of 36 pictures from one seed: `python examples/generate_sheet.py SEED
SHEET.png`.
"""

import sys

from ign_client import Client


def main(seed: int, target: str) -> None:
    with Client() as client:
        sheet = client.generate_as("png", n=36, seed=seed, score=True, scale=4, gap=8)
    sheet.save(target)
    print(f"{sheet.model.ref}, seed {sheet.seed}: largest drift {max(sheet.drift):.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(int(sys.argv[1]), sys.argv[2])
