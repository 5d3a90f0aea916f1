"""Share a run or a pipeline on the Hub: python scripts/push.py runs/mnist-vae user/mnist-vae."""

import sys

from hfgen.cli import main

sys.exit(main(["push", *sys.argv[1:]]))
