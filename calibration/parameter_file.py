"""Parameter sets as YAML files: written whole or not at all, with numbers that read back exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from moesim.cli.output import write_atomic
from moesim.errors import InputError
from moesim.specs.loading import load
from moesim.specs.parameters import ParameterSet, check_parameters

_DIGITS = 8


def read_parameters(path: Path) -> ParameterSet:
    """Read and check a set. Raises InputError."""
    return check_parameters(load(path, ParameterSet), str(path))


def write_parameters(parameters: ParameterSet, path: Path) -> None:
    """Write a set in place of an old one, in one step: a crash leaves the old file as it was.

    Raises:
        InputError: the folder cannot be written.
    """
    check_parameters(parameters, parameters.name)
    text = yaml.safe_dump(_rounded(msgspec.to_builtins(parameters)), sort_keys=False, width=120, allow_unicode=True)
    write_file(path, text)


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one step, making its folder. Raises InputError naming it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({error.strerror or error})") from None
    write_atomic(path, content)


def _rounded(value: Any) -> Any:
    """Eight significant digits, written so that YAML reads a number back (1.0e-06, never 1e-06)."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
