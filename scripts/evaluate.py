"""`accelerate launch scripts/evaluate.py MODEL ...`: `hfgen evaluate` on many processes."""

import sys

from hfgen.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
