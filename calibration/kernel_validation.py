"""Rows of measured kernel tables beside the formulas of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.folds import Folds
from calibration.kernels.families import Family, shape_folds
from calibration.kernels.registry import families_of
from calibration.kernels.tables import KernelTable, read_table
from calibration.runs import SkippedRow
from calibration.validation_rows import ValidationRow
from moesim.specs.parameters import ParameterSet, select_parameters

FloatArray = NDArray[np.float64]
KERNEL_SUFFIX = ".parquet"
_UNKNOWN_ERROR = 0.5


@dataclass(frozen=True, slots=True)
class TableValidation:
    """Predicted rows of one table, and those of kernels that no formula describes."""

    rows: list[ValidationRow]
    skipped: list[SkippedRow]
    parameter_sets: set[str]


def validate_table(path: Path, folds: Folds | None, parameters: ParameterSet | None) -> TableValidation:
    """Predict every row of a table with the set of its accelerator and library, or out of fold.

    Raises:
        InputError: the table cannot be read.
    """
    table = read_table(path)
    chosen = parameters or set_for(table)
    rows: list[ValidationRow] = []
    covered = np.zeros(len(table), dtype=bool)
    for family, part in families_of(table):
        covered[part.rows] = True
        rows += _rows(table, part, family, chosen, folds)
    skipped = [
        SkippedRow(id=f"{table.system}/{table.library}/{table.path.name}#{row}", file=str(path), reason=_reason(table))
        for row in np.flatnonzero(~covered).tolist()
    ]
    return TableValidation(rows, skipped, {chosen.name})


def set_for(table: KernelTable) -> ParameterSet:
    """The parameter set of a table's accelerator, of the engine version that its folder names where there is one."""
    library, _, version = table.library.partition("-")
    engine = "sglang" if library == "sglang" else "vllm"
    return select_parameters(table.accelerator, engine, version if library == engine else "")


def _reason(table: KernelTable) -> str:
    return f"no formula describes these {table.operator} kernels (kernel_source or number format)"


def _rows(
    table: KernelTable, part: KernelTable, family: Family, parameters: ParameterSet, folds: Folds | None
) -> list[ValidationRow]:
    label = f"{table.system}/{table.library}/{table.path.name}"
    own = parameters.kernels.get(family.name)
    held_out = folds.kernel_constants(label, family.name) if folds else None
    measured = part.seconds(family.measured)
    if held_out:
        fold = shape_folds(part, family.shape, len(held_out))
        predicted = np.empty(len(part))
        for number, constants in enumerate(held_out):
            mask = fold == number
            predicted[mask] = family.predict(part.where(mask), family.constants(constants))
    else:
        known = {name: parameters[name] for name in family.start if name in parameters.parameters}
        predicted = family.predict(part, family.constants(own.constants if own else known))
    spread = float(np.exp(own.error if own else _UNKNOWN_ERROR))
    seen = not held_out and own is not None and own.source == label
    group = f"{table.accelerator.name} / {table.library} / {family.name}"
    scale = 1e6 if family.measured.endswith("_us") else 1e3
    return [
        ValidationRow(id_, family.measured, m * scale, p * scale, p / spread * scale, p * spread * scale, group, seen)
        for id_, m, p in zip(part.ids(), measured.tolist(), predicted.tolist(), strict=True)
    ]
