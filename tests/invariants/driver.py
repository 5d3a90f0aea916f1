"""Started by the launcher: runs lists of ``hfgen`` arguments one after the other."""

import json
import sys

from hfgen.cli import main

if __name__ == "__main__":
    for arguments in json.loads(sys.argv[1]):
        if (status := main(arguments)) != 0:
            sys.exit(status)
