"""`python -m model_export {data,train,export,import,verify,evaluate,figures,card}`."""

import sys

from model_export.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
