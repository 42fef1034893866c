"""A parameter set by name or file."""

from __future__ import annotations

from pathlib import Path

from calibration.parameter_file import read_parameters
from moesim.errors import InputError, nearest
from moesim.specs.parameters import ParameterSet, list_parameter_sets


def named_parameters(name: str) -> ParameterSet:
    """The shipped set called `name`, or the one in a YAML file. Raises InputError with the nearest names."""
    if name.endswith((".yaml", ".yml")):
        return read_parameters(Path(name))
    known = list_parameter_sets()
    if name not in known:
        raise InputError(f"parameters: unknown set {name!r}; {nearest(name, known)}")
    return known[name]
