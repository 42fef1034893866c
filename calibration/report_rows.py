"""What a calibration's page says, as plain rows: estimates, what identified them, errors by group, the worst rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from calibration.errors_left_out import free_of, left_out_errors
from calibration.metrics import METRICS
from calibration.pipeline import Calibration
from calibration.run_fit import Linearisation, RunFit
from calibration.runs import MeasuredRun
from moesim.specs.catalog import get_model

FloatArray = NDArray[np.float64]
_FEW_ROWS = 6
_DOMINANT = 0.5
_GROUPS = (
    ("the host", ("host_", "graph_replay")),
    ("the server in front of the engine", ("server_",)),
    ("the experts", ("moe_", "experts_")),
    ("dense products", ("gemm_", "quantise_")),
    ("attention", ("decode_", "attention_", "prefill_", "mla_", "kv_write")),
    ("communication", ("ring_", "one_shot", "two_shot", "exchange_", "collective_", "nic_", "switch_", "deepep_")),
    ("small kernels", ("kernel_s", "elementwise_", "roofline_")),
)


@dataclass(frozen=True, slots=True)
class EstimateRow:
    """A fitted constant: value and errors as shares; `runs` that told most about it with their share of it."""

    key: str
    value: float
    relative_error: float
    bootstrap_error: float | None
    prior: float
    prior_error: float
    status: str
    runs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupError:
    """Errors of the rows of one group, in the fit and with the group's series left out (shares)."""

    kind: str
    group: str
    rows: int
    bias: float
    mean: float
    left_out_mean: float


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A row that the fit meets badly, and why."""

    run: str
    metric: str
    measured: float
    predicted: float
    error: float
    why: str


@dataclass(frozen=True, slots=True)
class RowErrors:
    """log(predicted / measured) of all rows [data], `fitted` and `left_out` (NaN where nothing could be left out)."""

    linear: Linearisation
    fitted: FloatArray
    left_out: FloatArray

    def run(self, row: int) -> MeasuredRun:
        """The run of a row."""
        return self.linear.observations.runs[self.linear.observations.index[row][0]]


def row_errors(run_fit: RunFit) -> RowErrors:
    """Errors of every row at the estimates, and with its series left out."""
    return RowErrors(
        run_fit.linear, run_fit.result.log_errors, left_out_errors(run_fit.linear, free_of(run_fit), "series")
    )


def estimate_rows(done: Calibration, bootstrap: dict[str, float]) -> list[EstimateRow]:
    """Every constant of the fit to runs, those that the data moved first."""
    if done.run_fit is None:
        return []
    known = identified_by(done.run_fit)
    rows = [
        EstimateRow(
            item.name,
            item.value,
            item.log_sd,
            bootstrap.get(item.name),
            item.prior,
            item.prior_log_sd,
            "at a bound" if item.at_bound else "prior only" if item.prior_only else "fitted",
            () if item.prior_only else known[item.name],
        )
        for item in done.run_fit.result.estimates
    ]
    order = {"fitted": 0, "at a bound": 1, "prior only": 2}
    return sorted(rows, key=lambda row: (order[row.status], row.key))


def identified_by(run_fit: RunFit, count: int = 3) -> dict[str, tuple[str, ...]]:
    """Constant -> the runs with the largest information about it: (slope / noise) squared, as a share of all."""
    linear = run_fit.linear
    information = (linear.slopes / linear.observations.noise[:, None]) ** 2
    runs = np.array([run for run, _ in linear.observations.index])
    found: dict[str, tuple[str, ...]] = {}
    for column, name in enumerate(linear.columns):
        by_run = np.bincount(runs, weights=information[:, column])
        whole = float(by_run.sum())
        best = [index for index in np.argsort(-by_run)[:count].tolist() if by_run[index] > 0]
        found[name.key] = tuple(f"{linear.observations.runs[index].id} ({by_run[index] / whole:.0%})" for index in best)
    return found


def group_errors(errors: RowErrors) -> list[GroupError]:
    """Errors by model, concurrency, prompt length and metric."""
    kinds: dict[str, Callable[[int], str]] = {
        "model": lambda row: get_model(errors.run(row).request.model).name,
        "sequences": lambda row: _power_of_two(sequences_of(errors.run(row))),
        "prompt tokens": lambda row: _power_of_two(errors.run(row).request.input_len),
        "metric": lambda row: errors.linear.observations.index[row][1],
    }
    found: list[GroupError] = []
    for kind, key in kinds.items():
        groups: dict[str, list[int]] = defaultdict(list)
        for row in range(len(errors.fitted)):
            groups[key(row)].append(row)
        found += [_group_error(errors, kind, name, groups[name]) for name in sorted(groups, key=_natural)]
    return found


def sequences_of(run: MeasuredRun) -> int:
    """Concurrency of a run, or sequences of a single step."""
    if run.step is not None:
        return run.step.decodes + run.step.chunks
    return run.request.concurrency or 1


def _power_of_two(value: int) -> str:
    return f"{1 << max(value - 1, 0).bit_length()}"


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (0, name)


def _group_error(errors: RowErrors, kind: str, name: str, rows: Sequence[int]) -> GroupError:
    fitted, left = np.expm1(errors.fitted[rows]), np.expm1(errors.left_out[rows])
    known = left[np.isfinite(left)]
    return GroupError(
        kind,
        name,
        len(rows),
        float(fitted.mean()),
        float(np.abs(fitted).mean()),
        float(np.abs(known).mean()) if len(known) else float("nan"),
    )


def worst_rows(errors: RowErrors, count: int = 15) -> list[WorstRow]:
    """The rows with the largest errors (left out where known), one a run and kind of metric."""
    size = np.where(np.isfinite(errors.left_out), np.abs(errors.left_out), np.abs(errors.fitted))
    chosen: list[int] = []
    seen: set[tuple[int, str]] = set()
    for row in np.argsort(-size).tolist():
        run, metric = errors.linear.observations.index[row]
        if (run, METRICS[metric].kind) not in seen and len(chosen) < count:
            seen.add((run, METRICS[metric].kind))
            chosen.append(row)
    return [_worst(errors, row) for row in chosen]


def _worst(errors: RowErrors, row: int) -> WorstRow:
    observations = errors.linear.observations
    run, metric = observations.index[row]
    error = errors.left_out[row] if np.isfinite(errors.left_out[row]) else errors.fitted[row]
    measured = float(observations.measured[row])
    return WorstRow(
        run=observations.runs[run].id,
        metric=metric,
        measured=measured,
        predicted=measured * float(np.exp(error)),
        error=float(np.expm1(error)),
        why=why(errors, row),
    )


def why(errors: RowErrors, row: int) -> str:
    """A sentence: what decides the prediction, what is special about the run, and whether its neighbours err alike."""
    run = errors.run(row)
    parts = [decided_by(errors.linear, row)]
    if run.flags:
        parts.append(f"the data flag it ({', '.join(run.flags)})")
    rows = [other for other in range(len(errors.fitted)) if errors.run(other).request.model == run.request.model]
    if len(rows) < _FEW_ROWS:
        parts.append(f"only {len(rows)} rows are of this model")
    parts += _company(errors, row)
    moved = errors.left_out[row] - errors.fitted[row]
    if np.isfinite(moved) and abs(moved) > max(abs(errors.fitted[row]), 0.05):
        parts.append(f"in the fit its error is {np.expm1(errors.fitted[row]):+.0%}: nothing else tells its constants")
    return "; ".join(parts) + "."


def decided_by(linear: Linearisation, row: int) -> str:
    """Which part of the machine a prediction moves with, from its slopes."""
    shares: dict[str, float] = {}
    for column, slope in zip(linear.columns, np.abs(linear.slopes[row]).tolist(), strict=True):
        group = next((name for name, starts in _GROUPS if column.name.startswith(starts)), "other constants")
        shares[group] = max(shares.get(group, 0.0), slope)
    name, share = max(shares.items(), key=lambda item: item[1])
    if share >= _DOMINANT:
        return f"decided by {name} ({min(share, 1.0):.0%} of the prediction moves with it)"
    return f"decided by no single part ({name} leads with {share:.0%})"


def _company(errors: RowErrors, row: int) -> list[str]:
    """Whether rows of the same series and metric err in the same direction."""
    run, metric = errors.run(row), errors.linear.observations.index[row][1]
    alike = [
        float(np.expm1(errors.fitted[other]))
        for other in range(len(errors.fitted))
        if other != row
        and errors.linear.observations.index[other][1] == metric
        and (errors.run(other).series or errors.run(other).configuration) == (run.series or run.configuration)
    ]
    if len(alike) < 2:
        return []
    middle = median(alike)
    if middle * errors.fitted[row] > 0 and abs(middle) > 0.05:
        return [f"its whole series errs alike (median {middle:+.0%})"]
    return [f"the rest of its series does not (median {middle:+.0%})"]
