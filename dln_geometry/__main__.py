"""Run the command line: ``python -m dln_geometry``."""

from __future__ import annotations

import sys

from dln_geometry.cli import main

if __name__ == "__main__":
    sys.exit(main())
