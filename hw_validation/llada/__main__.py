"""`python -m hw_validation.llada`."""

from __future__ import annotations

import sys

from hw_validation.llada.cli import main

if __name__ == "__main__":
    sys.exit(main())
