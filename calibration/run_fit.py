"""Constants from measured serving runs: Gauss-Newton around simulations, with constants of machines beside the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.concurrently import answers_of
from calibration.fitting import FitResult, FreeParameter, fit, pseudo_huber
from calibration.kept import ARRAYS, kept_answer, program_digest
from calibration.metrics import METRICS
from calibration.rejection import reason_to_reject
from calibration.runs import MeasuredRun, StepPoint
from calibration.slopes import RunPrediction, predict_with_slopes
from calibration.steps import with_layers
from moesim.engine.serving import paused_collector
from moesim.errors import InputError
from moesim.scenarios import make_scenario
from moesim.specs.parameters import Parameter, ParameterSet, at_site
from moesim.specs.scenario import Scenario

FloatArray = NDArray[np.float64]
Progress = Callable[[int, int, str], None]
_FIRST_MOVE, _LARGEST_MOVE = 0.8, 1.6
_CONVERGED = 0.004
_SETTLED = 0.015
"""Two rounds in a row that move what is minimised by less than this share of it end a fit."""
_ROUGH_RUNS = 60
_ROUGH_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Column:
    """A constant to fit: of all runs, or of the runs of one site."""

    name: str
    site: str = ""

    @property
    def key(self) -> str:
        """Name in reports."""
        return f"{self.name}@{self.site}" if self.site else self.name


@dataclass(frozen=True, slots=True)
class Observations:
    """Measured values [data] of `runs`: row -> (run, metric), with the noise of each."""

    runs: tuple[MeasuredRun, ...]
    index: tuple[tuple[int, str], ...]
    measured: FloatArray
    noise: FloatArray

    def where(self, mask: NDArray[np.bool_]) -> Observations:
        """The rows that `mask` [data] keeps, of the same runs."""
        kept = tuple(pair for pair, keep in zip(self.index, mask.tolist(), strict=True) if keep)
        return Observations(self.runs, kept, self.measured[mask], self.noise[mask])


def observe(runs: Sequence[MeasuredRun]) -> Observations:
    """All measured values of runs that a fit may use (`calibration.rejection`)."""
    pairs = [(i, m) for i, run in enumerate(runs) for m in run.measured if reason_to_reject(run, m) is None]
    measured = np.array([runs[i].measured[metric] for i, metric in pairs])
    noise = np.array([METRICS[metric].log_sd * runs[i].noise for i, metric in pairs])
    return Observations(tuple(runs), tuple(pairs), measured, noise)


def linearise(
    observations: Observations,
    parameters: ParameterSet,
    columns: Sequence[Column],
    jobs: int,
    progress: Progress | None,
    state: Path | None = None,
) -> tuple[FloatArray, FloatArray]:
    """log predictions [data] and their slopes [data, columns]; rows that cannot run are NaN.

    `state`: folder that keeps answers, for a fit that goes on where it was interrupted.
    """

    def question() -> bytes:
        asked = [(run.request, run.site, run.layers, run.step) for run in observations.runs]
        return program_digest() + msgspec.json.encode((parameters, columns, asked, observations.index))

    logs, slopes = kept_answer(
        state, question, ARRAYS, lambda: _simulated(observations, parameters, columns, jobs, progress)
    )
    return logs, slopes


def _simulated(
    observations: Observations,
    parameters: ParameterSet,
    columns: Sequence[Column],
    jobs: int,
    progress: Progress | None,
) -> tuple[FloatArray, FloatArray]:
    names = tuple(dict.fromkeys(column.name for column in columns))
    groups = _layout_groups(observations, parameters)
    calls = ((group, names) for group in groups)
    found: dict[int, RunPrediction] = {}
    for done, (group, answers) in enumerate(zip(groups, answers_of(_predict_group, calls, jobs), strict=True)):
        found.update({item.run: answer for item, answer in zip(group, answers, strict=True) if answer is not None})
        if progress is not None:
            progress(done + 1, len(groups), group[0].scenario.model.name)
    return _assemble(observations, columns, names, found)


@dataclass(frozen=True, slots=True)
class _Member:
    run: int
    scenario: Scenario
    metrics: tuple[str, ...]
    step: StepPoint | None


def _layout_groups(observations: Observations, parameters: ParameterSet) -> list[list[_Member]]:
    """Runs by what their step tables depend on."""
    metrics: dict[int, list[str]] = {}
    for run, metric in observations.index:
        metrics.setdefault(run, []).append(metric)
    groups: dict[bytes, list[_Member]] = {}
    for index, names in metrics.items():
        run = observations.runs[index]
        scenario = scenario_of(run, parameters)
        key = msgspec.json.encode(
            (
                scenario.model,
                scenario.cluster,
                scenario.deployment,
                scenario.routing,
                run.site,
                scenario.seed,
                run.step is None,
            )
        )
        groups.setdefault(key, []).append(_Member(index, scenario, tuple(names), run.step))
    return sorted(groups.values(), key=len, reverse=True)


def scenario_of(run: MeasuredRun, parameters: ParameterSet | None = None) -> Scenario:
    """The scenario of a run under `parameters` (or the shipped set), with its site's constants where they are known.

    Raises:
        InputError: the run is no valid scenario.
    """
    scenario = make_scenario(run.request)
    chosen = parameters or scenario.parameters
    if run.site in chosen.sites:
        chosen = at_site(chosen, run.site)
    return msgspec.structs.replace(scenario, parameters=chosen, model=with_layers(scenario.model, run.layers))


def _predict_group(group: list[_Member], names: tuple[str, ...]) -> list[RunPrediction | None]:
    with paused_collector():
        answers = predict_with_slopes(
            [item.scenario for item in group], [item.metrics for item in group], names, [item.step for item in group]
        )
    return [None if isinstance(answer, str) else answer for answer in answers]


def _assemble(
    observations: Observations, columns: Sequence[Column], names: Sequence[str], found: Mapping[int, RunPrediction]
) -> tuple[FloatArray, FloatArray]:
    rows = len(observations.index)
    logs, slopes = np.full(rows, np.nan), np.zeros((rows, len(columns)))
    position = {(column.name, column.site): index for index, column in enumerate(columns)}
    for row, (run, metric) in enumerate(observations.index):
        answer = found.get(run)
        if answer is None or not answer.values[metric] > 0:
            continue
        logs[row] = math.log(answer.values[metric])
        site = observations.runs[run].site
        for name, slope in zip(names, answer.slopes[metric].tolist(), strict=True):
            index = position.get((name, site), position.get((name, "")))
            if index is not None:
                slopes[row, index] = slope
    return logs, slopes


@dataclass(frozen=True, slots=True)
class Linearisation:
    """Predictions around one set of constants: `logs` [data] and `slopes` [data, columns] at `at` [columns]."""

    observations: Observations
    columns: tuple[Column, ...]
    logs: FloatArray
    slopes: FloatArray
    at: FloatArray


@dataclass(frozen=True, slots=True)
class RunFit:
    """The fitted set, the solver's result, and the problem's linear form at the end (for leaving rows out)."""

    parameters: ParameterSet
    result: FitResult
    linear: Linearisation


def fit_runs(
    base: ParameterSet,
    observations: Observations,
    columns: Sequence[Column],
    prior_log_sd: Mapping[str, float],
    *,
    start: ParameterSet | None = None,
    jobs: int = -1,
    max_rounds: int = 8,
    rough: bool = True,
    progress: Progress | None = None,
    state: Path | None = None,
) -> RunFit:
    """Move the constants of `columns` until simulated runs agree with the measured ones.

    Each round simulates every run once and solves the linearised problem within reach of the best point so far;
    a round that made the agreement worse shortens the reach, and the answer is a point that was simulated.
    Priors are the base set's estimates with their doubt, or with `prior_log_sd` by name or name@site.
    `start`: constants to begin from, where better ones than the priors are known.
    `rough`: begin with rounds on a few dozen runs spread over all, which is where most of the way is made.
    `state`: folder that keeps every round's simulations, so that an interrupted fit resumes.

    Raises:
        InputError: no run can be predicted.
    """
    free = [_prior(base, column, prior_log_sd) for column in columns]
    point = start or base
    few = _spread_over(observations)
    if rough and few is not observations:
        point = _descend(point, few, columns, free, jobs, _ROUGH_ROUNDS, progress, state).parameters
    return _descend(point, observations, columns, free, jobs, max_rounds, progress, state)


def refit_without(
    full: RunFit,
    free: Sequence[FreeParameter],
    held: NDArray[np.bool_],
    jobs: int,
    max_rounds: int,
    state: Path | None = None,
) -> ParameterSet:
    """The constants from all rows but `held` [data]: the full fit's linear form says where to begin, simulations go on.

    `free`: the full fit's priors.
    """
    linear = full.linear
    begin = apply_estimates(full.parameters, linear.columns, solve(linear, free, ~held))
    kept = linear.observations.where(~held)
    return _descend(begin, kept, linear.columns, free, jobs, max_rounds, None, state).parameters


def _spread_over(observations: Observations) -> Observations:
    """Every n-th of many runs, a few dozen in all; few runs as they are."""
    runs = sorted({run for run, _ in observations.index}, key=lambda run: (observations.runs[run].site, run))
    every = len(runs) // _ROUGH_RUNS
    if every < 2:
        return observations
    chosen = set(runs[::every])
    return observations.where(np.array([run in chosen for run, _ in observations.index]))


def _descend(
    current: ParameterSet,
    observations: Observations,
    columns: Sequence[Column],
    free: Sequence[FreeParameter],
    jobs: int,
    max_rounds: int,
    progress: Progress | None,
    state: Path | None,
) -> RunFit:
    """Gauss-Newton from `current`, as `fit_runs` says."""
    best, least, expected, reach, settled = None, math.inf, 0.0, _FIRST_MOVE, 0
    for _ in range(max_rounds):
        at = np.log([value_of(current, column) for column in columns])
        logs, slopes = linearise(observations, current, columns, jobs, progress, state)
        linear = _finite(Linearisation(observations, tuple(columns), logs, slopes, at))
        cost = _cost(linear, free)
        settled = settled + 1 if abs(cost - least) < _SETTLED * least else 0
        if best is not None:
            reach = _next_reach(reach, (least - cost) / max(least - expected, 1e-9))
        if best is None or cost < least:
            best, least = linear, cost
        result = solve(best, free, reach=reach)
        moved = np.log([item.value for item in result.estimates]) - best.at
        if np.abs(moved).max() < _CONVERGED or settled == 2:
            break
        expected = _cost(_moved(best, moved), free)
        current = apply_estimates(current, columns, result)
    if best is None:
        raise AssertionError("max_rounds must be positive")
    final = solve(best, free, reach=_CONVERGED)
    return RunFit(apply_estimates(current, columns, final), final, best)


def _next_reach(reach: float, kept: float) -> float:
    """How far the next round may go, where the last one gained `kept` of what its linear form had promised."""
    if kept > 0.7:
        return min(2 * reach, _LARGEST_MOVE)
    return reach if kept > 0.3 else reach / (2 if kept > 0 else 4)


def _moved(linear: Linearisation, by: FloatArray) -> Linearisation:
    """What the linear form expects `by` [columns] further."""
    return dataclasses.replace(linear, logs=linear.logs + linear.slopes @ by, at=linear.at + by)


def _cost(linear: Linearisation, free: Sequence[FreeParameter]) -> float:
    """What a fit minimises, at the point where `linear` stands."""
    prior = [(point - math.log(item.prior)) / item.log_sd for point, item in zip(linear.at, free, strict=True)]
    errors = (linear.logs - np.log(linear.observations.measured)) / linear.observations.noise
    return float(np.square(pseudo_huber(errors)).sum() + np.square(prior).sum())


def _finite(linear: Linearisation) -> Linearisation:
    usable = np.isfinite(linear.logs)
    if not usable.any():
        raise InputError("calibrate: none of the runs can be predicted")
    kept = linear.observations.where(usable)
    return Linearisation(kept, linear.columns, linear.logs[usable], linear.slopes[usable], linear.at)


def solve(
    linear: Linearisation,
    free: Sequence[FreeParameter],
    keep: NDArray[np.bool_] | None = None,
    reach: float = _LARGEST_MOVE,
) -> FitResult:
    """The linear problem's optimum on the rows that `keep` [data] names (all), at most `reach` from where it stands."""
    rows = np.ones(len(linear.logs), dtype=bool) if keep is None else keep
    slopes = linear.slopes[rows]
    return fit(
        [_within(prior, float(np.exp(point)), reach) for prior, point in zip(free, linear.at, strict=True)],
        _linear(linear.logs[rows], slopes, linear.at, linear.columns),
        linear.observations.measured[rows],
        linear.observations.noise[rows],
        jacobian=lambda _: slopes,
    )


def _prior(base: ParameterSet, column: Column, prior_log_sd: Mapping[str, float]) -> FreeParameter:
    known = base.parameters[column.name]
    value = value_of(base, column)
    deviation = prior_log_sd.get(column.key, prior_log_sd.get(column.name, known.log_sd))
    return FreeParameter(column.key, value, deviation)


def _within(prior: FreeParameter, at: float, reach: float) -> FreeParameter:
    factor = math.exp(reach)
    return FreeParameter(prior.name, prior.prior, prior.log_sd, low=at / factor, high=at * factor)


def _linear(
    logs: FloatArray, slopes: FloatArray, at: FloatArray, columns: Sequence[Column]
) -> Callable[[Mapping[str, float]], FloatArray]:
    keys = [column.key for column in columns]

    def predict(values: Mapping[str, float]) -> FloatArray:
        return np.exp(logs + slopes @ (np.log([values[key] for key in keys]) - at))

    return predict


def value_of(parameters: ParameterSet, column: Column) -> float:
    """The constant that a column stands for; the general one where the site has none yet."""
    known = parameters.sites.get(column.site, {}).get(column.name, parameters.parameters[column.name])
    return known.value


def with_guesses(parameters: ParameterSet, columns: Iterable[Column], guesses: Mapping[str, float]) -> ParameterSet:
    """The set with other values for the columns that `guesses` names by key."""
    sites = {name: dict(constants) for name, constants in parameters.sites.items()}
    for column in columns:
        if column.site and column.key in guesses:
            known = parameters.parameters[column.name]
            guess = msgspec.structs.replace(known, value=guesses[column.key])
            sites.setdefault(column.site, {})[column.name] = guess
    return msgspec.structs.replace(parameters, sites=sites)


def apply_estimates(parameters: ParameterSet, columns: Iterable[Column], result: FitResult) -> ParameterSet:
    """The set with fitted estimates in place, of all and of each site."""
    general = dict(parameters.parameters)
    sites = {name: dict(constants) for name, constants in parameters.sites.items()}
    for column, estimate in zip(columns, result.estimates, strict=True):
        known = general[column.name]
        status = "prior_only" if estimate.prior_only else "fitted"
        moved = msgspec.structs.replace(known, value=estimate.value, log_sd=estimate.log_sd, status=status)
        target: dict[str, Parameter] = sites.setdefault(column.site, {}) if column.site else general
        target[column.name] = moved
    return msgspec.structs.replace(parameters, parameters=general, sites=sites)
