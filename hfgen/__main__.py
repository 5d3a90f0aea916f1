"""``python -m hfgen``, and ``accelerate launch -m hfgen``."""

import sys

from hfgen.cli import main

sys.exit(main())
