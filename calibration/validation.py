"""Predict measured runs and compare: rows, errors by group, and what was skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.readers import read_runs
from calibration.runs import MeasuredRun, SkippedRow
from moesim.errors import InputError
from moesim.metrics.result import SimulationResult
from moesim.scenarios import make_scenario
from moesim.simulation import simulate_scenario

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class ValidationRow:
    """One measured quantity beside its prediction and 90 % interval."""

    id: str
    metric: str
    measured: float
    predicted: float
    predicted_low: float
    predicted_high: float
    group: str

    @property
    def relative_error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1


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
    """The answer of `moesim validate`."""

    rows: tuple[ValidationRow, ...]
    skipped: tuple[SkippedRow, ...]
    parameter_sets: tuple[str, ...]

    @property
    def summary(self) -> list[GroupSummary]:
        """One line a group and metric, then one a metric for all."""
        groups = sorted({row.group for row in self.rows})
        return [
            *(line for group in groups for line in _summaries(group, [r for r in self.rows if r.group == group])),
            *_summaries("all", self.rows),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract."""
        return {
            "rows": [asdict(row) for row in self.rows],
            "summary": [asdict(line) for line in self.summary],
            "skipped": [{"id": item.id, "file": item.file, "reason": item.reason} for item in self.skipped],
            "parameter_sets": list(self.parameter_sets),
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


def validate_files(paths: Iterable[Path], jobs: int = -1, progress: Progress | None = None) -> ValidationTable:
    """Predict every row of the files, on `jobs` processes (-1: all cores).

    Raises:
        InputError: a file cannot be read, or holds a bad value.
    """
    from joblib import Parallel, delayed

    runs: list[MeasuredRun] = []
    skipped: list[SkippedRow] = []
    for path in paths:
        found, left_out = read_runs(path)
        runs.extend(found)
        skipped.extend(left_out)
    predictions = Parallel(n_jobs=jobs, return_as="generator", batch_size=4)(delayed(predict_run)(run) for run in runs)
    rows: list[ValidationRow] = []
    sets: set[str] = set()
    for done, (run, answer) in enumerate(zip(runs, predictions, strict=True)):
        if progress is not None:
            progress(done, len(runs), run.group)
        if isinstance(answer, str):
            skipped.append(SkippedRow(id=run.id, file="", reason=answer))
        else:
            sets.add(answer[0])
            rows.extend(answer[1])
    return ValidationTable(tuple(rows), tuple(skipped), tuple(sorted(sets)))


def predict_run(run: MeasuredRun) -> tuple[str, list[ValidationRow]] | str:
    """(parameter set, a row per measured metric), or the reason why the run cannot be predicted."""
    try:
        result = simulate_scenario(make_scenario(run.request))
    except InputError as error:
        return str(error)
    rows: list[ValidationRow] = []
    for metric, measured in run.measured.items():
        if metric not in _METRICS:
            return f"metric {metric!r} is not one that moesim predicts; known: {', '.join(_METRICS)}"
        value, low, high = _predicted(metric, result)
        if value is not None:
            rows.append(ValidationRow(run.id, metric, measured, value, low, high, run.group))
    return result.parameter_set, rows


_METRICS: dict[str, tuple[str, str | None]] = {
    "output_tok_per_s": ("output_tokens_per_s", None),
    "total_tok_per_s": ("total_tokens_per_s", None),
    "elapsed_s": ("duration_s", None),
    "itl_p50_ms": ("itl_ms", "p50"),
    "itl_mean_ms": ("itl_ms", "mean"),
    "tpot_p50_ms": ("tpot_ms", "p50"),
    "tpot_mean_ms": ("tpot_ms", "mean"),
    "ttft_p50_ms": ("ttft_ms", "p50"),
    "ttft_mean_ms": ("ttft_ms", "mean"),
    "ttft_p99_ms": ("ttft_ms", "p99"),
    "silicon_ttft_ms": ("ttft_ms", "mean"),
    "silicon_tpot_ms": ("tpot_ms", "mean"),
    "prompt_mean_ms": ("e2e_ms", "mean"),
}
"""Measured column -> (field of the result, statistic)."""


def _predicted(metric: str, result: SimulationResult) -> tuple[float | None, float, float]:
    """Prediction and 90 % interval; rates and durations share the interval of the throughput."""
    field, statistic = _METRICS[metric]
    found = getattr(result, field)
    if found is None:
        return None, math.nan, math.nan
    value = float(getattr(found, statistic) if statistic else found)
    key = field if field in result.interval_90 else "output_tokens_per_s"
    low, high = result.interval_90[key]
    spread = math.sqrt(high / low)
    return value, value / spread, value * spread
