"""Start a measuring process early: it does all that needs no GPU, then waits to be told to go on.

Importing vLLM and resolving an architecture takes as long as many points of a sweep. A campaign therefore starts
the next process while the present one's engine starts, and sends it `go UNTIL` when the GPU is free: the time
(seconds of the machine's clock) at which it must be done.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

GO = "go"


def wait_for_go(source: TextIO | None = None) -> float | None:
    """Seconds left of those granted by a line `go UNTIL` on `source` (standard input); None without such a line."""
    line = (source or sys.stdin).readline().split()
    if len(line) != 2 or line[0] != GO:
        return None
    return float(line[1]) - time.time()


def go_line(seconds: float) -> str:
    """The line that grants `seconds` from now on."""
    return f"{GO} {time.time() + seconds:.3f}\n"
