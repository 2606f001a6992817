"""``python -m lexiseg`` is ``lexiseg``."""

import sys

from lexiseg.cli import program

sys.exit(program())
