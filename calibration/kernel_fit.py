"""Constants of kernels from measured kernel tables: each family of each library fitted on its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from calibration.concurrently import answers_of
from calibration.fitting import Estimate
from calibration.kept import Form, formulas_digest, kept_answer
from calibration.kernels.families import Family, fit_family, shape_folds
from calibration.kernels.registry import families_of
from calibration.kernels.tables import KernelTable, read_table
from calibration.run_fit import Progress
from calibration.sources import hash_file
from moesim.specs.parameters import KernelConstants, Parameter, ParameterSet

_BENCH_LOG_SD = 0.08
"""Kernels inside an engine against the same kernels in a benchmark loop: caches, neighbours, clocks (our H200 runs)."""
_FOLDS = 5


class FamilyFit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A family fitted to the rows of one table; `error` is the 90 % quantile of |log(predicted / measured)|."""

    family: str
    table: str
    rows: int
    error: float
    median_error: float
    estimates: tuple[Estimate, ...]
    fixed: dict[str, float]

    @property
    def values(self) -> dict[str, float]:
        """Estimates by name."""
        return {item.name: item.value for item in self.estimates}


_FITS = Form("json", msgspec.json.encode, msgspec.json.Decoder(list[FamilyFit]).decode)


class KernelFit(msgspec.Struct, frozen=True, kw_only=True):
    """The base set with the kernels' constants in place, and the fits behind them."""

    parameters: ParameterSet
    fits: tuple[FamilyFit, ...]


def fit_kernels(
    base: ParameterSet,
    files: Sequence[Path],
    jobs: int = -1,
    state: Path | None = None,
    progress: Progress | None = None,
) -> KernelFit:
    """Fit every kernel family that the tables hold; a constant that several families share keeps the first's value.

    How far runs moved a constant of the base beyond the base's own table is taken over: what an engine adds to a kernel
    in a benchmark's loop on one accelerator it adds on the next.

    Args:
        state: folder that keeps fits of tables that did not change (none: fit everything).

    Raises:
        InputError: a table cannot be read, or holds bad values.
    """
    fits: list[FamilyFit] = []
    for number, found in enumerate(answers_of(fit_table, ((path, state) for path in files), jobs)):
        if progress is not None:
            progress(number + 1, len(files), f"kernels of {files[number].parent.name}")
        fits += found
    constants, kernels, taken = dict(base.parameters), dict(base.kernels), set[str]()
    for item in fits:
        kernels[item.family] = KernelConstants(
            constants=item.values, error=item.error, rows=item.rows, source=item.table
        )
        _update(constants, item, taken, _in_engine(base, item.family))
    return KernelFit(parameters=msgspec.structs.replace(base, parameters=constants, kernels=kernels), fits=tuple(fits))


def fit_table(path: Path, state: Path | None = None, without: tuple[int, int] | None = None) -> list[FamilyFit]:
    """Every family of one table, from `state` where the same table and formulas were fitted before.

    Args:
        without: (fold, folds): leave the shapes of one fold out.
    """
    table = read_table(path)
    families = families_of(table)

    def question() -> bytes:
        told_apart = [(family.name, len(part)) for family, part in families]
        return repr((hash_file(path), told_apart, without, formulas_digest())).encode()

    return kept_answer(
        state, question, _FITS, lambda: [_fit(table, family, part, without) for family, part in families]
    )


def _fit(table: KernelTable, family: Family, part: KernelTable, without: tuple[int, int] | None) -> FamilyFit:
    if without is not None:
        part = part.where(shape_folds(part, family.shape, without[1]) != without[0])
    found = fit_family(family, [part], seed=without[0] if without else 0)
    errors = np.abs(found.log_errors)
    return FamilyFit(
        family=family.name,
        table=table_label(table),
        rows=len(part),
        error=float(np.quantile(errors, 0.9)),
        median_error=float(np.median(errors)),
        estimates=found.estimates,
        fixed=dict(family.fixed),
    )


def table_label(table: KernelTable) -> str:
    """How a table is named in ids and sources."""
    return f"{table.system}/{table.library}/{table.path.name}"


def _in_engine(base: ParameterSet, family: str) -> dict[str, float]:
    """What runs moved in a family of the base: estimate over the value of its table, by constant."""
    if family not in base.kernels:
        return {}
    table = base.kernels[family].constants
    known = {name: base.parameters[name] for name in table if name in base.parameters}
    return {name: item.value / table[name] for name, item in known.items() if item.moved and table[name] > 0}


def _update(constants: dict[str, Parameter], found: FamilyFit, taken: set[str], in_engine: Mapping[str, float]) -> None:
    for item in found.estimates:
        known = constants.get(item.name)
        if known is None or item.name in taken:
            continue
        taken.add(item.name)
        constants[item.name] = msgspec.structs.replace(
            known,
            value=item.value * in_engine.get(item.name, 1.0),
            log_sd=math.hypot(item.log_sd, _BENCH_LOG_SD),
            source=f"fitted: {found.table} ({found.family})",
            status="at_bound" if item.at_bound else "prior_only" if item.prior_only else "fitted",
        )
    for name, value in found.fixed.items():
        if name in constants and name not in taken:
            taken.add(name)
            constants[name] = msgspec.structs.replace(
                constants[name], value=value, source=f"source code of {found.family}"
            )


def kernel_folds(
    path: Path, jobs: int = -1, state: Path | None = None, progress: Progress | None = None
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Table -> family -> fold -> constants fitted without the fold's shapes."""
    calls = ((path, state, (number, _FOLDS)) for number in range(_FOLDS))
    found: dict[str, list[dict[str, float]]] = {}
    label = ""
    for number, fits in enumerate(answers_of(fit_table, calls, jobs)):
        if progress is not None:
            progress(number + 1, _FOLDS, f"folds of {path.parent.name}/{path.name}")
        for item in fits:
            label = item.table
            found.setdefault(item.family, []).append(item.values)
    return {label: found}
