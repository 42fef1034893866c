"""Constants of kernels from measured kernel tables: each family of each library fitted on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from calibration.fitting import FitResult
from calibration.kernels.families import Family, fit_family, shape_folds
from calibration.kernels.registry import families_of
from calibration.kernels.tables import KernelTable, read_table
from calibration.run_fit import Progress
from moesim.specs.parameters import KernelConstants, Parameter, ParameterSet

_BENCH_LOG_SD = 0.08
"""Kernels inside an engine against the same kernels in a benchmark loop: caches, neighbours, clocks (our H200 runs)."""


@dataclass(frozen=True, slots=True)
class FamilyFit:
    """A family fitted to the rows of one table."""

    family: Family
    table: str
    rows: int
    result: FitResult


@dataclass(frozen=True, slots=True)
class KernelFit:
    """The base set with the kernels' constants in place, and the fits behind them."""

    parameters: ParameterSet
    fits: tuple[FamilyFit, ...]


def fit_kernels(base: ParameterSet, files: Sequence[Path], progress: Progress | None = None) -> KernelFit:
    """Fit every kernel family that the tables hold; a constant that several families share keeps the first's value.

    Raises:
        InputError: a table cannot be read, or holds bad values.
    """
    fits: list[FamilyFit] = []
    constants = dict(base.parameters)
    kernels = dict(base.kernels)
    for number, path in enumerate(files):
        table = read_table(path)
        if progress is not None:
            progress(number, len(files), f"{table.library} {table.operator}")
        for family, part in families_of(table):
            found = fit_family(family, [part])
            fits.append(FamilyFit(family, _label(table), len(part), found))
            kernels[family.name] = _kernel(family, found, len(part), _label(table))
            _update(constants, family, found, _label(table))
    return KernelFit(msgspec.structs.replace(base, parameters=constants, kernels=kernels), tuple(fits))


def _kernel(family: Family, found: FitResult, rows: int, label: str) -> KernelConstants:
    """Few constants and thousands of rows: the fit's own errors are those of rows left out (the folds show it)."""
    error = float(np.quantile(np.abs(found.log_errors), 0.9))
    return KernelConstants(constants=found.values, error=error, rows=rows, source=label)


def _label(table: KernelTable) -> str:
    return f"{table.system}/{table.library}/{table.path.name}"


def _update(constants: dict[str, Parameter], family: Family, found: FitResult, label: str) -> None:
    for item in found.estimates:
        known = constants.get(item.name)
        if known is None or known.status == "fitted":
            continue
        constants[item.name] = msgspec.structs.replace(
            known,
            value=item.value,
            log_sd=math.hypot(item.log_sd, _BENCH_LOG_SD),
            source=f"fitted: {label} ({family.name})",
            status="at_bound" if item.at_bound else "prior_only" if item.prior_only else "fitted",
        )
    for name, value in family.fixed.items():
        if name in constants and constants[name].status == "prior":
            constants[name] = msgspec.structs.replace(
                constants[name], value=value, source=f"source code of {family.name}"
            )


def kernel_folds(
    path: Path, progress: Progress | None = None, folds: int = 5
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Table -> family -> fold -> constants fitted without the fold's shapes."""
    table = read_table(path)
    found: dict[str, list[dict[str, float]]] = {}
    for family, part in families_of(table):
        fold = shape_folds(part, family.shape, folds)
        found[family.name] = []
        for number in range(folds):
            if progress is not None:
                progress(number, folds, f"{table.library} {family.name}")
            found[family.name].append(fit_family(family, [part.where(fold != number)], seed=number).values)
    return {_label(table): found}
