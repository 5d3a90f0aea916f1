"""The door for ``accelerate launch scripts/train.py RECIPE ...``: the same as ``hfgen train``."""

import sys

from hfgen.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
