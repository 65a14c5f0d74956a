"""``python -m fencebroker.cli`` is ``fencectl``."""

from __future__ import annotations

import sys

from fencebroker.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
