"""``python -m distfs``."""

import sys

from distfs.cli import main

sys.exit(main())
