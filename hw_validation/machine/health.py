"""The health check of a container: a GPU is visible, and a server answers where one is expected.

python -m hw_validation.machine.health     (MOESIM_SERVER_URL: the server's address, when there must be one)
"""

from __future__ import annotations

import os
import sys

from hw_validation.machine import amd, nvidia
from hw_validation.server.process import answers


def complaint() -> str:
    """What is wrong; empty when all is well."""
    if not (nvidia.list_gpus() or amd.list_gpus()):
        return "no GPU is visible"
    url = os.environ.get("MOESIM_SERVER_URL", "").rstrip("/")
    if url and not answers(url):
        return f"no server answers at {url}"
    return ""


def main() -> int:
    """0 when healthy; otherwise 1, and the reason on standard error."""
    wrong = complaint()
    if wrong:
        print(wrong, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
