"""Predict measured rows and compare: errors by group, what a fit has seen, and what was skipped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from calibration.concurrently import answers_of
from calibration.folds import Folds, fitted_rows
from calibration.kernel_validation import KERNEL_SUFFIX, validate_table
from calibration.metrics import METRICS, family_of, predicted_value
from calibration.readers import read_runs
from calibration.rejection import flaw_of
from calibration.residuals import Comparison, ResidualFile, correction_factor
from calibration.run_fit import scenario_of
from calibration.runs import MeasuredRun, SkippedRow
from calibration.slopes import price_step
from calibration.validation_rows import ValidationRow
from moesim.errors import InputError
from moesim.metrics.uncertainty import model_error
from moesim.simulation import simulate_scenario
from moesim.specs.parameters import ParameterSet
from moesim.specs.scenario import Scenario

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Errors of one metric over a group of rows, as shares of the measured value."""

    group: str
    metric: str
    n: int
    mape: float
    median_ape: float
    p90_ape: float
    bias: float
    coverage_90: float


@dataclass(frozen=True, slots=True)
class ValidationTable:
    """The answer of `moesim validate`. `corrections`: the residual models that were on (none: physics alone)."""

    rows: tuple[ValidationRow, ...]
    skipped: tuple[SkippedRow, ...]
    parameter_sets: tuple[str, ...]
    corrections: tuple[Comparison, ...] = ()

    @property
    def summary(self) -> list[GroupSummary]:
        """One line a group (gpu, engine, model) and metric, then one a metric for all."""
        by_group: dict[str, list[ValidationRow]] = {}
        for row in self.rows:
            by_group.setdefault(row.group, []).append(row)
        lines = [line for group in sorted(by_group) for line in _summaries(group, by_group[group])]
        return lines + _summaries("all", self.rows)

    @property
    def summary_undisturbed(self) -> list[GroupSummary]:
        """`summary` without the values that are known to be disturbed; empty where there are none."""
        sound = tuple(row for row in self.rows if not row.flaw)
        return [] if len(sound) == len(self.rows) else dataclasses.replace(self, rows=sound).summary

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "summary": [asdict(line) for line in self.summary],
            "summary_undisturbed": [asdict(line) for line in self.summary_undisturbed],
            "skipped": [{"id": item.id, "file": item.file, "reason": item.reason} for item in self.skipped],
            "parameter_sets": list(self.parameter_sets),
            "residual_models": [msgspec.to_builtins(item) for item in self.corrections],
        }


def _summaries(group: str, rows: Sequence[ValidationRow]) -> list[GroupSummary]:
    lines: list[GroupSummary] = []
    for metric in sorted({row.metric for row in rows}):
        chosen = [row for row in rows if row.metric == metric]
        errors = np.array([row.relative_error for row in chosen])
        inside = np.array([row.predicted_low <= row.measured <= row.predicted_high for row in chosen])
        absolute = np.abs(errors)
        lines.append(
            GroupSummary(
                group=group,
                metric=metric,
                n=len(chosen),
                mape=float(absolute.mean()),
                median_ape=float(np.median(absolute)),
                p90_ape=float(np.percentile(absolute, 90)),
                bias=float(errors.mean()),
                coverage_90=float(inside.mean()),
            )
        )
    return lines


def validate_files(
    paths: Iterable[Path],
    jobs: int = -1,
    progress: Progress | None = None,
    folds: Folds | None = None,
    parameters: ParameterSet | None = None,
    residuals: ResidualFile | None = None,
) -> ValidationTable:
    """Predict every row of the files, on `jobs` processes (-1: all cores).

    Args:
        folds: predict each row with the constants that did not see it.
        parameters: one set for all rows instead of the shipped ones.
        residuals: models that correct predictions; out of fold those that saw none of a row's series.

    Raises:
        InputError: a file cannot be read, or holds a bad value.
    """
    runs: list[MeasuredRun] = []
    skipped: list[SkippedRow] = []
    rows: list[ValidationRow] = []
    sets: set[str] = set()
    for path in paths:
        if path.suffix == KERNEL_SUFFIX:
            answer = validate_table(path, folds, parameters)
            rows.extend(answer.rows)
            skipped.extend(answer.skipped)
            sets.update(answer.parameter_sets)
            continue
        found, left_out = read_runs(path)
        runs.extend(found)
        skipped.extend(left_out)
    given = residuals, folds is not None
    calls = ((run, parameters or (folds.parameters_of(run) if folds else None), *given) for run in runs)
    predictions = answers_of(predict_run, calls, jobs, batch=4)
    for done, (run, answer) in enumerate(zip(runs, predictions, strict=True)):
        if progress is not None:
            progress(done + 1, len(runs), run.group)
        if isinstance(answer, str):
            skipped.append(SkippedRow(id=run.id, file="", reason=answer))
        else:
            sets.add(answer[0])
            rows.extend(answer[1])
    used = tuple(item.comparison for item in residuals.models.values()) if residuals else ()
    return ValidationTable(tuple(rows), tuple(skipped), tuple(sorted(sets)), used)


def predict_run(
    run: MeasuredRun,
    parameters: ParameterSet | None = None,
    residuals: ResidualFile | None = None,
    out_of_fold: bool = False,
) -> tuple[str, list[ValidationRow]] | str:
    """(parameter set, a row per measured metric), or the reason why the run cannot be predicted.

    `out_of_fold`: `parameters`, where given, are those of the fold that did not see the run.
    """
    unknown = [metric for metric in run.measured if metric not in METRICS]
    if unknown:
        return f"metric {unknown[0]!r} is not one that moesim predicts; known: {', '.join(METRICS)}"
    try:
        scenario = scenario_of(run, parameters)
        held_out = out_of_fold and parameters is not None
        seen = not held_out and run.id in fitted_rows(scenario.parameters.name)
        if run.step is not None:
            return scenario.parameters.name, _step_rows(run, scenario, seen)
        result = simulate_scenario(scenario)
    except InputError as error:
        return str(error)
    rows: list[ValidationRow] = []
    for metric, measured in run.measured.items():
        value = predicted_value(metric, result)
        if not math.isfinite(value):
            return f"metric {metric!r}: the run has one output token, so there is no time between tokens"
        key = METRICS[metric].field
        low, high = result.interval_90[key if key in result.interval_90 else "output_tokens_per_s"]
        spread = math.sqrt(high / low)
        if residuals is not None:
            value *= correction_factor(residuals, run, metric, result, out_of_fold)
        limits = value / spread, value * spread
        rows.append(ValidationRow(run.id, metric, measured, value, *limits, run.group, seen, flaw_of(run, metric)))
    return result.parameter_set, rows


_BYTES_ERROR = 0.1
"""Counted DRAM bytes of five steps (Nsight Compute, H200) lie 1 to 9 % from the computed ones."""


def _step_rows(run: MeasuredRun, scenario: Scenario, seen: bool) -> list[ValidationRow]:
    """A single step is priced without a simulation; its interval is that of single steps left out."""
    values = price_step(run, scenario)
    rows: list[ValidationRow] = []
    for metric, measured in run.measured.items():
        family = family_of(metric)
        error = _BYTES_ERROR if family == "bytes" else model_error(scenario, family)
        value, factor = values[metric], math.exp(error)
        limits = value / factor, value * factor
        rows.append(ValidationRow(run.id, metric, measured, value, *limits, run.group, seen, flaw_of(run, metric)))
    return rows
