"""Readers of files of measured runs: which format a file has is decided by its columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from calibration.readers import diffusion, offline, own, serving, silicon
from calibration.readers.table import Row, read_rows
from calibration.runs import MeasuredRun, SkippedRow
from moesim.errors import InputError

RowReader = Callable[[Row], MeasuredRun | str]
_BY_COLUMN: dict[str, RowReader] = {
    "silicon_tpot_ms": silicon.read_row,
    "itl_p50_ms": serving.read_row,
    "prompt_mean_ms": diffusion.read_row,
    "elapsed_s": offline.read_row,
}


def read_runs(path: Path) -> tuple[list[MeasuredRun], list[SkippedRow]]:
    """All rows of a file: measured runs in the simulator's words, and the rows that cannot be predicted.

    Raises:
        InputError: the file is missing, unreadable, of no known format, or holds a bad value.
    """
    if path.suffix in {".yaml", ".yml", ".json"}:
        return own.read_file(path), []
    rows = read_rows(path)
    reader = next((_BY_COLUMN[name] for name in _BY_COLUMN if name in rows[0].cells), None)
    if reader is None:
        raise InputError(f"{path}: no known format; a column named one of {', '.join(_BY_COLUMN)} tells it")
    runs: list[MeasuredRun] = []
    skipped: list[SkippedRow] = []
    for row in rows:
        answer = reader(row)
        if isinstance(answer, str):
            skipped.append(SkippedRow(id=row.identity, file=str(path), reason=answer))
        else:
            runs.append(answer)
    return runs, skipped
