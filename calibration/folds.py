"""Folds on disk: for every shipped set, the constants fitted without each fold, and which rows a fold holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec

from calibration.errors_left_out import unit_of
from calibration.parameter_file import read_parameters, write_file, write_parameters
from calibration.runs import MeasuredRun
from moesim.errors import InputError
from moesim.scenarios import engine_of
from moesim.specs.catalog import get_hardware, get_model
from moesim.specs.loading import config_root, load
from moesim.specs.parameters import ParameterSet, select_parameters

FoldKind = Literal["configuration", "model", "gpu", "series"]
_INDEX = "folds.json"


class SetFolds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Folds of one set: `units` says in which fold a unit was left out, `files` where that fold's constants are."""

    units: dict[str, int]
    files: dict[str, str]


class FoldIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a folder of folds holds. `kernels`: table -> kernel family -> fold -> constants."""

    kind: FoldKind
    sets: dict[str, SetFolds]
    kernels: dict[str, dict[str, list[dict[str, float]]]] = {}


@dataclass(frozen=True, slots=True)
class Folds:
    """A folder written by `moesim calibrate --cross-validate`."""

    folder: Path
    index: FoldIndex

    def parameters_of(self, run: MeasuredRun) -> ParameterSet | None:
        """The constants fitted without this run; None where no fit has seen it."""
        request = run.request
        engine = engine_of(request, get_model(request.model))
        shipped = select_parameters(get_hardware(request.hardware), engine, request.engine_version)
        known = self.index.sets.get(shipped.name)
        fold = known.units.get(unit_of(run, self.index.kind)) if known else None
        file = known.files.get(str(fold)) if known else None
        return _read(self.folder / file) if file else None

    def kernel_constants(self, table: str, family: str) -> list[dict[str, float]] | None:
        """Constants of a kernel family without each fold of a table's shapes; None where the table was not fitted."""
        return self.index.kernels.get(table, {}).get(family)


@lru_cache(maxsize=256)
def _read(path: Path) -> ParameterSet:
    return read_parameters(path)


def read_folds(folder: Path) -> Folds:
    """Open a folder of folds. Raises InputError when it is none."""
    if not (folder / _INDEX).is_file():
        raise InputError(
            f"{folder}: holds no {_INDEX}; make one with moesim calibrate --cross-validate KIND -o {folder}"
        )
    return Folds(folder, load(folder / _INDEX, FoldIndex))


def write_folds(
    folder: Path,
    kind: FoldKind,
    sets: Mapping[str, tuple[Mapping[str, int], Mapping[int, ParameterSet]]],
    kernels: Mapping[str, dict[str, list[dict[str, float]]]],
) -> None:
    """Write every fold's constants, then the index (so that a folder without it is known to be unfinished)."""
    index: dict[str, SetFolds] = {}
    for name, (units, by_fold) in sets.items():
        files = {str(fold): f"{name}.fold{fold}.yaml" for fold in by_fold}
        for fold, parameters in by_fold.items():
            write_parameters(parameters, folder / files[str(fold)])
        index[name] = SetFolds(units=dict(units), files=files)
    content = FoldIndex(kind=kind, sets=index, kernels=dict(kernels))
    write_file(folder / _INDEX, msgspec.json.format(msgspec.json.encode(content), indent=1).decode() + "\n")


@lru_cache(maxsize=64)
def fitted_rows(set_name: str) -> frozenset[str]:
    """Ids of the rows that a shipped set was fitted to (`configs/parameters/rows/NAME.txt`)."""
    path = config_root() / "parameters" / "rows" / f"{set_name}.txt"
    return frozenset(path.read_text(encoding="utf-8").split("\n")) if path.is_file() else frozenset()
