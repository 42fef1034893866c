"""A model of what physics leaves: fitted to log(measured / predicted), and used only where it helps on unseen series.

Every kind of metric (time to first token, time per token, throughput) has its own model. Whole series are dealt out
to five folds; a fold's rows are corrected by a model that saw none of their series. The model is on where the mean
|log error| falls by more than the standard error of that fall over series; elsewhere predictions stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.concurrently import answers_of
from calibration.errors_left_out import assign_folds, unit_of
from calibration.folds import Folds
from calibration.metrics import family_of, predicted_value
from calibration.parameter_file import write_file
from calibration.rejection import reason_to_reject
from calibration.residual_features import FEATURES, residual_features
from calibration.residual_models import KINDS, ResidualModel, correction, fit_residuals
from calibration.run_fit import Progress, scenario_of
from calibration.runs import MeasuredRun
from moesim.errors import InputError
from moesim.metrics.result import SimulationResult
from moesim.simulation import simulate_scenario
from moesim.specs.loading import load
from moesim.specs.parameters import ParameterSet

FloatArray = NDArray[np.float64]
_FEWEST_ROWS = 30
_FEWEST_SERIES = 5


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Mean |log error| on series left out, without and with a correction; the gain and its standard error."""

    metric: str
    model: str
    rows: int
    series: int
    physics: float
    corrected: float
    gain: float
    gain_error: float

    @property
    def helps(self) -> bool:
        """Whether the correction is worth using."""
        return self.gain > self.gain_error > 0


class MetricModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The model of one kind of metric: fitted to all rows, and without each fold."""

    comparison: Comparison
    whole: ResidualModel
    folds: tuple[ResidualModel, ...]


class ResidualFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Residual models by kind of metric (only those that help), the folds of the series, and all comparisons."""

    features: tuple[str, ...]
    units: dict[str, int]
    models: dict[str, MetricModel]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True, slots=True)
class ResidualRows:
    """Rows of one kind of metric: features [rows, features], log(measured / predicted) [rows], series and folds."""

    features: FloatArray
    residuals: FloatArray
    series: NDArray[np.str_]
    fold: NDArray[np.int64]


def learn_residuals(
    runs: Sequence[MeasuredRun],
    folds: Folds | None = None,
    parameters: ParameterSet | None = None,
    jobs: int = -1,
    progress: Progress | None = None,
) -> ResidualFile:
    """Simulate every run (out of fold where `folds` are given), and judge corrections on series left out.

    Raises:
        InputError: too few rows or series.
    """
    runs = [run for run in runs if run.step is None]
    chosen = [parameters or (folds.parameters_of(run) if folds else None) for run in runs]
    samples: list[list[tuple[str, list[float], float]]] = []
    for done, found in enumerate(answers_of(_simulated, zip(runs, chosen, strict=True), jobs, batch=4)):
        samples.append(found)
        if progress is not None:
            progress(done + 1, len(runs), runs[done].group)
    units = assign_folds(runs, "series")
    if len(units) < _FEWEST_SERIES:
        raise InputError(f"residuals: {len(units)} series are too few to leave some out; give at least 5")
    comparisons: list[Comparison] = []
    models: dict[str, MetricModel] = {}
    for kind in sorted({kind for found in samples for kind, _, _ in found}):
        rows = _rows(runs, samples, kind, units)
        if len(rows.residuals) < _FEWEST_ROWS:
            continue
        answers = [_judge(kind, name, rows) for name in KINDS]
        comparisons += [item.comparison for item in answers]
        best = max(answers, key=lambda item: item.comparison.gain)
        if best.comparison.helps:
            models[kind] = best
    return ResidualFile(features=FEATURES, units=units, models=models, comparisons=tuple(comparisons))


def _simulated(run: MeasuredRun, parameters: ParameterSet | None) -> list[tuple[str, list[float], float]]:
    """(kind, features, log(measured / predicted)) of every usable value; nothing where the run cannot be simulated."""
    try:
        result = simulate_scenario(scenario_of(run, parameters), intervals=False)
    except InputError:
        return []
    seen = residual_features(run, result)
    found: list[tuple[str, list[float], float]] = []
    for metric, measured in run.measured.items():
        if reason_to_reject(run, metric) is None:
            value = predicted_value(metric, result)
            if value > 0:
                found.append((family_of(metric), seen, math.log(measured / value)))
    return found


def _rows(
    runs: Sequence[MeasuredRun],
    samples: Sequence[Sequence[tuple[str, list[float], float]]],
    kind: str,
    units: dict[str, int],
) -> ResidualRows:
    chosen = [
        (run, seen, error) for run, found in zip(runs, samples, strict=True) for k, seen, error in found if k == kind
    ]
    names = [unit_of(run, "series") for run, _, _ in chosen]
    return ResidualRows(
        np.array([seen for _, seen, _ in chosen]),
        np.array([error for _, _, error in chosen]),
        np.array(names),
        np.array([units[name] for name in names]),
    )


def _judge(kind: str, name: str, rows: ResidualRows) -> MetricModel:
    corrected = np.empty(len(rows.residuals))
    models: list[ResidualModel] = []
    whole = fit_residuals(name, rows.features, rows.residuals)
    for fold in range(int(rows.fold.max()) + 1):
        held = rows.fold == fold
        kept = ~held
        model = fit_residuals(name, rows.features[kept], rows.residuals[kept]) if kept.any() else whole
        models.append(model)
        for row in np.flatnonzero(held).tolist():
            corrected[row] = rows.residuals[row] - correction(model, rows.features[row].tolist())
    return MetricModel(comparison=_compare(kind, name, rows, corrected), whole=whole, folds=tuple(models))


def _compare(kind: str, name: str, rows: ResidualRows, corrected: FloatArray) -> Comparison:
    """The standard error of the gain comes from whole series, whose rows share their errors."""
    gains = np.abs(rows.residuals) - np.abs(corrected)
    names = np.unique(rows.series)
    sums = np.array([(gains[rows.series == item] - gains.mean()).sum() for item in names])
    error = math.sqrt(float(np.sum(sums**2)) * len(names) / max(len(names) - 1, 1)) / len(gains)
    return Comparison(
        metric=kind,
        model=name,
        rows=len(gains),
        series=len(names),
        physics=float(np.abs(rows.residuals).mean()),
        corrected=float(np.abs(corrected).mean()),
        gain=float(gains.mean()),
        gain_error=error,
    )


def write_residuals(path: Path, found: ResidualFile) -> None:
    """Write the models as JSON, in one step. Raises InputError."""
    write_file(path, msgspec.json.encode(found).decode() + "\n")


def read_residuals(path: Path) -> ResidualFile:
    """Read a file of residual models. Raises InputError when it is none, or was made for other features."""
    found = load(path, ResidualFile)
    if found.features != FEATURES:
        raise InputError(f"{path}: features are of another version; make the file anew with moesim residuals")
    return found


def correction_factor(
    found: ResidualFile, run: MeasuredRun, metric: str, result: SimulationResult, out_of_fold: bool
) -> float:
    """What to multiply a prediction by (1 where off); `out_of_fold`: by the model that saw none of the run's series."""
    known = found.models.get(family_of(metric))
    if known is None:
        return 1.0
    fold = found.units.get(unit_of(run, "series"))
    model = known.folds[fold] if out_of_fold and fold is not None else known.whole
    return math.exp(correction(model, residual_features(run, result)))
