"""Standard errors from resampled data, beside those of the Jacobian."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.errors_left_out import free_of, unit_of
from calibration.fitting import FreeParameter
from calibration.run_fit import Linearisation, Observations, Progress, RunFit, solve

FloatArray = NDArray[np.float64]


def bootstrap_errors(
    run_fit: RunFit, draws: int, rng: np.random.Generator, progress: Progress | None = None
) -> dict[str, float]:
    """Standard deviation of every constant's logarithm over `draws` refits of resampled data.

    Whole series are drawn with replacement, since rows of a series share their errors. Priors are drawn from their
    own spread, so that a constant that no row tells about keeps its prior's doubt, as in the Jacobian's errors.
    The problem is solved in its linear form at the estimates: how far the slopes themselves change is left out.
    """
    linear, free = run_fit.linear, free_of(run_fit)
    units = _units(linear.observations)
    logs = np.empty((draws, len(free)))
    for number in range(draws):
        chosen = rng.integers(0, len(units), len(units))
        rows = np.concatenate([units[index] for index in chosen])
        found = solve(_resampled(linear, rows), [_drawn(item, rng) for item in free])
        logs[number] = np.log([item.value for item in found.estimates])
        if progress is not None:
            progress(number + 1, draws, "resampled fits")
    spread = np.sqrt(np.mean((logs - logs.mean(axis=0)) ** 2, axis=0) * draws / max(draws - 1, 1))
    return {item.name: float(value) for item, value in zip(free, spread, strict=True)}


def _units(observations: Observations) -> list[NDArray[np.int64]]:
    """The rows of every series."""
    names = np.array([unit_of(observations.runs[run], "series") for run, _ in observations.index])
    return [np.flatnonzero(names == name) for name in np.unique(names)]


def _resampled(linear: Linearisation, rows: NDArray[np.int64]) -> Linearisation:
    observations = linear.observations
    index: Sequence[tuple[int, str]] = observations.index
    drawn = Observations(
        observations.runs,
        tuple(index[row] for row in rows.tolist()),
        observations.measured[rows],
        observations.noise[rows],
    )
    return dataclasses.replace(linear, observations=drawn, logs=linear.logs[rows], slopes=linear.slopes[rows])


def _drawn(item: FreeParameter, rng: np.random.Generator) -> FreeParameter:
    value = item.prior * float(np.exp(item.log_sd * rng.standard_normal()))
    return dataclasses.replace(item, prior=value)
