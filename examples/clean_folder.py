"""Clean a folder of scans: `python examples/clean_folder.py SCANS OUT`."""

import sys
from pathlib import Path

from ign_client import Client, InvalidContent


def main(scans: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with Client() as client:
        for scan in sorted(scans.iterdir()):
            try:
                (image,) = client.project(scan, model="scans")
            except InvalidContent as error:
                print(f"{scan.name}: {error.code}")
                continue
            image.save(out / f"{scan.stem}.png")
            print(f"{scan.name}: {image.width}x{image.height}, moved by {image.distance:.3f}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
