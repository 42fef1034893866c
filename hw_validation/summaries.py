"""Summaries of repeated measurements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, floor


def quantile(values: Sequence[float], fraction: float) -> float:
    """The `fraction` quantile of `values`, linear between neighbours (numpy's default rule)."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    low, high = ordered[floor(place)], ordered[ceil(place)]
    return low + (high - low) * (place - floor(place))


def summarize(name: str, unit: str, values: Iterable[float | None]) -> dict[str, float]:
    """Mean, p10, median, p90 and p99 as `{name}_{statistic}_{unit}`; empty when there are no values."""
    kept = [value for value in values if value is not None]
    if not kept:
        return {}
    summary = {f"{name}_mean_{unit}": sum(kept) / len(kept)}
    for label, fraction in (("p10", 0.1), ("median", 0.5), ("p90", 0.9), ("p99", 0.99)):
        summary[f"{name}_{label}_{unit}"] = quantile(kept, fraction)
    return {key: float(f"{value:.5g}") for key, value in summary.items()}
