"""Take the code for other GPUs out of CUDA libraries: `python -m benchmarks.authors.gpu_kit.fatbin
90 FILE…`.

A fat binary holds containers of code for several architectures, such as 90 for compute capability
9.0. NVIDIA does not document the form: what does not look like it stays as it is.
"""

import sys
from mmap import mmap
from struct import Struct
from typing import Final

# What the wheel of onnxruntime-gpu 1.31 on PyPI was built for, counted in its fat binaries. It runs
# on later minor versions of the same major one, and holds no PTX.
_ARCHITECTURES: Final = (75, 80, 86, 89, 90, 120)
_CONTAINER: Final = Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries
# kind, version, bytes of this header, bytes of the code, …, architecture
_ENTRY: Final = Struct("<HHIQ12xI")
_START: Final = _CONTAINER.pack(0xBA55ED50, 1, _CONTAINER.size, 0)[:8]
_PTX = 1
_MACHINE_CODE = 2


def prune(library: bytearray | mmap, architecture: int) -> None:
    """Zero the code for later architectures, and machine code of other major versions: it
    compresses to nothing.
    """
    place = library.find(_START)
    while 0 <= place <= len(library) - _CONTAINER.size:
        _, _, header, size = _CONTAINER.unpack_from(library, place)
        at = place + header
        end = min(place + header + size, len(library))
        while at + _ENTRY.size <= end:
            kind, _, header, size, code = _ENTRY.unpack_from(library, at)
            start = at + header
            at = at + header + size
            if header < _ENTRY.size or at > end:
                break
            earliest = architecture // 10 * 10 if kind == _MACHINE_CODE else 0
            if kind in (_PTX, _MACHINE_CODE) and not earliest <= code <= architecture:
                library[start:at] = bytes(size)
        place = library.find(_START, place + len(_START))


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if sys.argv[1].isdecimal() else 0
    if not any(each // 10 == wanted // 10 and each <= wanted for each in _ARCHITECTURES):
        sys.exit(f"ARCH={sys.argv[1]}: onnxruntime-gpu from PyPI holds no code for it")
    for name in sys.argv[2:]:
        with open(name, "r+b") as file, mmap(file.fileno(), 0) as mapped:
            prune(mapped, int(sys.argv[1]))
