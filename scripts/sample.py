"""The same as ``hfgen sample``."""

import sys

from hfgen.cli import main

sys.exit(main(["sample", *sys.argv[1:]]))
