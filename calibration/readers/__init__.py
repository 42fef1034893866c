"""Readers of files of measured runs: which format a file has is told from its suffix, its keys or its columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from calibration.readers import diffusion, llada, offline, own, records, serving, silicon, vllm_bench
from calibration.readers.measured import split_runs
from calibration.readers.table import Row, read_rows
from calibration.runs import MeasuredRun, SkippedRow
from calibration.schema import Measurement, Provenance, from_run
from calibration.schema_files import NAME, is_ours, load_measurements
from calibration.sources import LIMITS, Limits, hash_file, read_columns, read_json
from moesim.errors import InputError

RowReader = Callable[[Row], MeasuredRun | str]
_BY_COLUMN: dict[str, RowReader] = {
    "silicon_tpot_ms": silicon.read_row,
    "itl_p50_ms": serving.read_row,
    "prompt_mean_ms": diffusion.read_row,
    "elapsed_s": offline.read_row,
}


_YAML = (".yaml", ".yml")


def read_runs(path: Path, limits: Limits = LIMITS) -> tuple[list[MeasuredRun], list[SkippedRow]]:
    """All runs of a file in the simulator's words, and the rows that cannot be predicted with the reason.

    Raises:
        InputError: the file is missing, unreadable, of no known format, or holds a bad value.
    """
    found = _read_measurements(path, limits)
    if found is not None:
        return split_runs(found)
    if _suffix(path) in (*_YAML, ".json"):
        return own.read_file(path), []
    return _read_rows(path)


def read_measurements(path: Path, limits: Limits = LIMITS) -> list[Measurement]:
    """All records of a file of any format, as measurements of the one schema; rows that are skipped are left out.

    Raises:
        InputError: as `read_runs`.
    """
    found = _read_measurements(path, limits)
    if found is not None:
        return found
    runs, _ = read_runs(path, limits)
    sha256 = hash_file(path)
    return [from_run(run, Provenance(file=str(path), sha256=sha256, place=run.id)) for run in runs]


def _read_measurements(path: Path, limits: Limits) -> list[Measurement] | None:
    """Files that hold measurements or become ones; None for the project's run files and tables of known columns."""
    match _suffix(path):
        case ".jsonl":
            return records.read(path, limits)
        case ".parquet":
            return load_measurements(path, limits)
        case ".json":
            return _read_json(path, limits)
        case suffix if suffix not in _YAML and is_ours(read_columns(path, limits)):
            return load_measurements(path, limits)
        case _:
            return None


def _read_json(path: Path, limits: Limits) -> list[Measurement] | None:
    document = read_json(path, dict[str, msgspec.Raw], limits)
    schema = _text(document.get("schema"))
    if schema.startswith(NAME.rpartition("/")[0]):
        return load_measurements(path, limits)
    if schema.startswith(llada.SCHEMA.rpartition("/")[0]):
        return llada.read(path, limits)
    return vllm_bench.read(path, limits) if vllm_bench.accepts(set(document)) else None


def _text(raw: msgspec.Raw | None) -> str:
    try:
        return msgspec.json.decode(raw, type=str) if raw is not None else ""
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""


def _suffix(path: Path) -> str:
    """The suffix that tells the format, of the file within a .gz."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _read_rows(path: Path) -> tuple[list[MeasuredRun], list[SkippedRow]]:
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
