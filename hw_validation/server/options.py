"""How and where runs are measured on this site."""

from __future__ import annotations

from pathlib import Path

import msgspec


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Folders, hosts and limits. `hosts`: further nodes, reached by ssh; `address`: this node as they see it.

    `stop_s`: a time of `time.monotonic` after which no further run is begun (infinity: none).
    """

    models_dir: Path
    work_dir: Path
    hosts: tuple[str, ...] = ()
    address: str = "127.0.0.1"
    start_timeout_s: float = 1800.0
    sample_period_s: float = 0.5
    stop_s: float = float("inf")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a call of `run` did: runs recorded now, found in the log, and failed (with their reasons)."""

    recorded: int
    resumed: int
    failed: tuple[str, ...]
    complete: bool
