"""What a step costs for each unit of rank imbalance: measured with forced routing, and predicted.

python -m analysis.imbalance_slope FILES... [--json]

Files of step sweeps whose routing was forced (`hw_validation.forced_routing`): the same step under routings that load
the expert-parallel ranks more and more unevenly. The slope is that of a straight line through the points.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calibration.readers import read_measurements
from calibration.readers.measured import split_runs
from calibration.schema import Measurement
from calibration.validation import predict_run
from moesim.cli.output import print_json, print_table

_IMBALANCE = "routed_rank_max_over_mean"
_LEAST_POINTS = 3
_METRICS = ("step_forward_ms", "step_gpu_ms")


@dataclass(frozen=True, slots=True)
class Point:
    """One step: the fullest rank's tokens over the mean rank's, as counted, and milliseconds."""

    imbalance: float
    measured_ms: float
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class Slope:
    """`step` under `points` routings: its time with even ranks, and milliseconds for each unit of imbalance."""

    step: str
    points: int
    most_imbalance: float
    measured_even_ms: float
    predicted_even_ms: float
    measured_ms: float
    predicted_ms: float

    @property
    def share(self) -> float:
        """What the most uneven routing added to the step, as measured, over the even step."""
        return self.measured_ms * (self.most_imbalance - 1) / self.measured_even_ms


def read_points(paths: Iterable[Path]) -> dict[str, list[Point]]:
    """Points by step, of every record that counted its ranks' tokens and that moesim can predict."""
    found: dict[str, list[Point]] = defaultdict(list)
    for path in paths:
        for item in read_measurements(path):
            if item.flags.get("forced_routing") and _IMBALANCE in item.values:
                _add_point(found, item)
    return dict(found)


def _add_point(found: dict[str, list[Point]], item: Measurement) -> None:
    runs, _ = split_runs([item])
    answer = predict_run(runs[0]) if runs and runs[0].step is not None else ""
    if isinstance(answer, str):
        return
    rows = {row.metric: row for row in answer[1]}
    row = next(rows[metric] for metric in _METRICS if metric in rows)
    step = f"{item.site} {item.id.rpartition('/uniform')[0] or item.id.rpartition('/zipf')[0]}"
    found[step].append(Point(item.values[_IMBALANCE], row.measured, row.predicted))


def slope_of(step: str, points: Sequence[Point]) -> Slope:
    """Least squares through the points of one step; imbalance counts from 1, where all ranks have as many tokens."""
    excess = np.array([point.imbalance - 1 for point in points])
    lines = [
        np.polynomial.Polynomial.fit(excess, values, 1).convert().coef
        for values in ([point.measured_ms for point in points], [point.predicted_ms for point in points])
    ]
    (measured_even, measured), (predicted_even, predicted) = ((float(a), float(b)) for a, b in lines)
    most = max(point.imbalance for point in points)
    return Slope(step, len(points), most, measured_even, predicted_even, measured, predicted)


def slopes(paths: Iterable[Path]) -> list[Slope]:
    """Slopes of all steps that three routings or more were forced on."""
    return [slope_of(step, points) for step, points in read_points(paths).items() if len(points) >= _LEAST_POINTS]


def main(words: Sequence[str] | None = None) -> None:
    """Print the slopes."""
    parser = argparse.ArgumentParser(description="Milliseconds of a step for each unit of rank imbalance.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    found = slopes(given.files)
    if given.json:
        print_json([asdict(item) | {"share": item.share} for item in found])
        return
    rows = [
        {
            "step": item.step,
            "points": item.points,
            "up to": f"{item.most_imbalance:.2f}",
            "even measured / predicted ms": f"{item.measured_even_ms:.1f} / {item.predicted_even_ms:.1f}",
            "slope measured / predicted ms": f"{item.measured_ms:.1f} / {item.predicted_ms:.1f}",
            "slope's error": f"{item.predicted_ms / item.measured_ms - 1:+.0%}",
            "added": f"{item.share:+.0%}",
        }
        for item in found
    ]
    print_table("What rank imbalance costs", rows)


if __name__ == "__main__":
    main()
