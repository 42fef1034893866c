"""A kernel family: a formula of few named constants, fitted to measured tables and judged on shapes left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from calibration.fitting import FitResult, FreeParameter, fit
from calibration.kernels.tables import KernelTable

FloatArray = NDArray[np.float64]
Predict = Callable[[KernelTable, Mapping[str, float]], FloatArray]


@dataclass(frozen=True, slots=True)
class Family:
    """Kernels that one set of constants describes.

    `start`: constants to be fitted, with a first guess. `fixed`: what the kernel's source code says (tile shapes,
    largest number of splits). `shape`: the columns that name a measured shape; folds leave out whole shapes.
    `measured`: the column of the measured time. `bounds`: (least, largest) of constants that have physical limits;
    others may move fifty-fold from their first guess. `held`: what the formula needs besides, known from elsewhere
    or without effect on these rows.
    """

    name: str
    predict: Predict
    start: Mapping[str, float]
    shape: tuple[str, ...]
    fixed: Mapping[str, float] = field(default_factory=dict[str, float])
    measured: str = "latency"
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    held: Mapping[str, float] = field(default_factory=dict[str, float])

    def constants(self, fitted: Mapping[str, float]) -> dict[str, float]:
        """All constants of the formula."""
        return {**self.held, **self.start, **self.fixed, **fitted}


def fit_family(family: Family, tables: Sequence[KernelTable], sample: int = 3000, seed: int = 0) -> FitResult:
    """Fit the family's constants to at most `sample` rows of each table (drawn without replacement)."""
    rng = np.random.default_rng([seed, 0xFA31])
    chosen = [table.where(np.sort(rng.permutation(len(table))[:sample])) for table in tables]
    measured = np.concatenate([table.seconds(family.measured) for table in chosen])
    free = [_free(family, name, value) for name, value in family.start.items()]

    def predict(values: Mapping[str, float]) -> FloatArray:
        constants = family.constants(values)
        return np.concatenate([family.predict(table, constants) for table in chosen])

    return fit(free, predict, measured, noise=0.05)


def _free(family: Family, name: str, value: float) -> FreeParameter:
    low, high = family.bounds.get(name, (value / 50, value * 50))
    return FreeParameter(name, value, log_sd=1.0, low=low, high=high)


def shape_folds(table: KernelTable, columns: Sequence[str], folds: int = 5) -> NDArray[np.int64]:
    """A fold for every row; rows of one shape share theirs."""
    present = [table.columns[name].astype(np.str_) for name in columns if table.has(name)]
    shapes = np.array(["|".join(parts) for parts in zip(*present, strict=True)])
    _, index = np.unique(shapes, return_inverse=True)
    order = np.random.default_rng(0x5A9E).permutation(index.max() + 1)
    return order[index] % folds


def out_of_fold(family: Family, table: KernelTable, folds: int = 5, sample: int = 3000) -> FloatArray:
    """Seconds of every row, predicted by constants fitted without its shape."""
    fold = shape_folds(table, family.shape, folds)
    seconds = np.empty(len(table))
    for number in range(folds):
        held = fold == number
        fitted = fit_family(family, [table.where(~held)], sample, seed=number).values
        seconds[held] = family.predict(table.where(held), family.constants(fitted))
    return seconds


def error_quantiles(predicted: FloatArray, measured: FloatArray) -> tuple[float, float]:
    """Median and 90th percentile of |predicted / measured - 1|."""
    errors = np.abs(predicted / measured - 1)
    return float(np.median(errors)), float(np.quantile(errors, 0.9))
