"""How wrong a fit is on rows it did not see: rows left out in turn, by configuration, series, model or session."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.fitting import FreeParameter
from calibration.metrics import family_of
from calibration.run_fit import Linearisation, Observations, RunFit, solve
from calibration.runs import MeasuredRun
from moesim.specs.catalog import get_model
from moesim.specs.parameters import ErrorLevel, Evidence

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
_FOLDS = 5
_QUANTILE = 0.9
_FEWEST = 20
_LARGEST_ERROR = 1.5


def unit_of(run: MeasuredRun, kind: str) -> str:
    """What is left out together with a run: its configuration, series, model or accelerator."""
    if kind == "model":
        return get_model(run.request.model).name
    if kind == "gpu":
        return run.request.hardware
    if kind == "series":
        return run.series or run.configuration or run.id
    return run.configuration or run.series or run.id


def assign_folds(runs: Sequence[MeasuredRun], kind: str, folds: int = _FOLDS) -> dict[str, int]:
    """Unit -> fold. Models and accelerators each are a fold of their own; other units are dealt out at random."""
    units = sorted({unit_of(run, kind) for run in runs})
    if kind in {"model", "gpu"}:
        return {unit: index for index, unit in enumerate(units)}
    order = np.random.default_rng(0xF01D).permutation(len(units))
    return {units[position]: int(rank) % folds for rank, position in enumerate(order)}


def row_folds(observations: Observations, kind: str) -> IntArray:
    """The fold of every row [data]."""
    folds = assign_folds(observations.runs, kind)
    return np.array([folds[unit_of(observations.runs[run], kind)] for run, _ in observations.index], dtype=np.int64)


def held_rows(observations: Observations, kind: str) -> dict[int, BoolArray]:
    """Fold -> its rows [data], in order of fold."""
    folds = row_folds(observations, kind)
    return {fold: folds == fold for fold in sorted(set(folds.tolist()))}


def left_out_errors(linear: Linearisation, free: Sequence[FreeParameter], kind: str) -> FloatArray:
    """log(predicted / measured) of every row [data] with its fold left out of the (linearised) fit."""
    folds = held_rows(linear.observations, kind)
    errors = np.full(len(linear.observations.index), np.nan)
    if len(folds) < 2:
        return errors
    measured = np.log(linear.observations.measured)
    for held in folds.values():
        found = solve(linear, free, ~held)
        moved = np.log([item.value for item in found.estimates]) - linear.at
        errors[held] = linear.logs[held] + linear.slopes[held] @ moved - measured[held]
    return errors


def free_of(run_fit: RunFit) -> list[FreeParameter]:
    """The fit's priors again."""
    return [FreeParameter(item.name, item.prior, item.prior_log_sd) for item in run_fit.result.estimates]


def evidence_of(run_fit: RunFit, inputs: Mapping[str, str]) -> Evidence:
    """What the fit saw, and its errors on what was left out in turn."""
    observations = run_fit.linear.observations
    free = free_of(run_fit)
    by_kind = {
        kind: left_out_errors(run_fit.linear, free, unit)
        for kind, unit in (("configuration", "configuration"), ("model", "model"), ("accelerator", "gpu"))
    }
    levels = {kind: error_level(observations, errors) for kind, errors in by_kind.items() if np.isfinite(errors).any()}
    runs = observations.runs
    concurrency = [run.request.concurrency for run in runs if run.request.concurrency is not None]
    return Evidence(
        models=tuple(sorted({get_model(run.request.model).name for run in runs})),
        concurrency=(min(concurrency, default=0), max(concurrency, default=0)),
        rows=len(observations.index),
        errors=levels,
        model_errors=_by_model(observations, by_kind["configuration"]),
        inputs=dict(inputs),
    )


def _by_model(observations: Observations, errors: FloatArray) -> dict[str, ErrorLevel]:
    models = np.array([get_model(observations.runs[run].request.model).name for run, _ in observations.index])
    found: dict[str, ErrorLevel] = {}
    for model in sorted(set(models.tolist())):
        mask = models == model
        if np.isfinite(errors[mask]).sum() >= _FEWEST:
            found[model] = error_level(observations.where(mask), errors[mask])
    return found


def error_level(observations: Observations, errors: FloatArray) -> ErrorLevel:
    """The 90 % quantiles of |error| by what the rows measure; a kind without rows takes the widest known."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for (_, metric), error in zip(observations.index, errors.tolist(), strict=True):
        if math.isfinite(error):
            kinds[family_of(metric)].append(abs(error))
    sizes = {kind: min(float(np.quantile(values, _QUANTILE)), _LARGEST_ERROR) for kind, values in kinds.items()}
    widest = max(sizes.values(), default=_LARGEST_ERROR)
    return ErrorLevel(
        rows=sum(len(values) for values in kinds.values()),
        ttft=sizes.get("ttft", widest),
        token=sizes.get("token", widest),
        throughput=sizes.get("throughput", sizes.get("token", widest)),
        step=sizes.get("step", 0.0),
        launch=sizes.get("launch", 0.0),
    )
