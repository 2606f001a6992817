"""``python -m lexiseg`` is ``lexiseg``."""

import sys

from lexiseg.cli import main

sys.exit(main())
