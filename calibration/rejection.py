"""Which measured values a fit may not use, and why. The reasons follow the READMEs of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from calibration.metrics import METRICS
from calibration.runs import MeasuredRun

_ALL = {
    "noisy_host": "something else used the host (inter-token latencies of repeats differ by a tenth)",
    "limit_unknown": "waited longer than served although all were admitted: launched with another max_num_seqs",
    "other_host_calls": "run by an earlier program, which started other kernels from the host",
    "precision_unknown_not_bf16": "weight precision unknown: 93 GB of bf16 weights cannot be on one 80 GB card",
}
_STALLED = {
    "ttft_stall": "kernels were compiled at new batch shapes while requests waited (warm-up stall)",
    "itl_mean_inflated": "kernels were compiled between tokens (warm-up stall)",
}


def reason_to_reject(run: MeasuredRun, metric: str) -> str | None:
    """Why a measured value says nothing about the steady engine; None when it may be fitted.

    A stall does not move the median gap between tokens, so that stays usable.
    """
    if metric not in METRICS:
        return f"{metric} is no quantity that moesim predicts"
    if METRICS[metric].kind == "bytes":
        return "counted bytes: no constant moves what the model reads and writes"
    return flaw_of(run, metric) or None


def flaw_of(run: MeasuredRun, metric: str) -> str:
    """What disturbed a measured value, or ''."""
    for flag in run.flags:
        if flag in _ALL:
            return _ALL[flag]
        if flag in _STALLED and METRICS[metric].kind != "median_gap":
            return _STALLED[flag]
    return ""


def rejected_values(runs: Sequence[MeasuredRun]) -> dict[str, int]:
    """Reason -> how many measured values are left out for it."""
    reasons = [reason_to_reject(run, metric) for run in runs for metric in run.measured]
    return dict(Counter(reason for reason in reasons if reason is not None))
