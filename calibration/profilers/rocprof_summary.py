"""rocprofv3's `--summary` text: tables of NAME, DOMAIN, CALLS, DURATION between bars."""

from __future__ import annotations

import re
from pathlib import Path

from calibration.profilers.tables import Profile, Total
from calibration.profilers.units import time_scale
from calibration.sources import LIMITS, Limits, parse_number, read_lines
from moesim.errors import InputError

MAGIC = "ROCPROFV3"
_DURATION = re.compile(r"^DURATION \((?P<unit>\w+)\)$")


def read(path: Path, limits: Limits = LIMITS) -> Profile:
    """The first table of each domain (later tables of the file repeat them in a summary). Raises InputError."""
    totals: dict[tuple[str, str], Total] = {}
    scale = None
    for number, line in read_lines(path, limits):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 4 or set(cells[0]) <= {"-", ":"}:
            continue
        if cells[0] == "NAME":
            found = _DURATION.match(cells[3])
            scale = time_scale(found["unit"]) if found else None
            continue
        if scale is None:
            raise InputError(f"{path} line {number}: a row of a table whose header does not give the unit of DURATION")
        place = f"{path} line {number}"
        calls, time = parse_number(cells[2], f"{place}: CALLS"), parse_number(cells[3], f"{place}: DURATION")
        what = "kernel" if cells[1] == "KERNEL_DISPATCH" else cells[1].lower().replace("_", " ")
        totals.setdefault((what, cells[0]), Total(what=what, name=cells[0], count=int(calls), total_s=time * scale))
    if not totals:
        raise InputError(f"{path}: holds no summary table")
    return Profile(
        path=str(path),
        tool="rocprofv3 summary (text)",
        totals=tuple(totals.values()),
        absent=("kernels: a summary holds sums, no single executions", "counters: a summary holds none"),
    )
