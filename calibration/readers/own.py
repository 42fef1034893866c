"""The project's own files of measured runs."""

from __future__ import annotations

from pathlib import Path

from calibration.runs import MeasuredRun, RunFile
from moesim.errors import InputError
from moesim.specs.loading import load

SCHEMA_VERSION = 1


def read_file(path: Path) -> list[MeasuredRun]:
    """All runs of a YAML or JSON file of the project's schema. Raises InputError."""
    if not path.is_file():
        raise InputError(f"{path}: file does not exist")
    content = load(path, RunFile)
    if content.schema_version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema_version is {content.schema_version}, must be {SCHEMA_VERSION}")
    if not content.runs:
        raise InputError(f"{path}: holds no runs")
    return list(content.runs)
