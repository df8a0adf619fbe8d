"""`python -m ign_client`."""

import sys

from ign_client._cli import main

if __name__ == "__main__":  # pragma: no branch
    sys.exit(main())
