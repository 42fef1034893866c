"""The figures of a calibration's page, as PNG data that an HTML file can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from calibration.metrics import METRICS
from calibration.report_rows import RowErrors, sequences_of
from calibration.runs import MeasuredRun
from moesim.specs.catalog import get_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = ("token", "median_gap", "ttft", "throughput", "elapsed", "step", "forward", "experts", "attention", "launch")
_WORDS = {
    "token": "time per token",
    "median_gap": "median gap between tokens",
    "ttft": "time to first token",
    "throughput": "throughput",
    "elapsed": "elapsed time",
    "step": "engine step",
    "forward": "forward pass of a step",
    "experts": "experts' kernels of a step",
    "attention": "attention's kernels of a step",
    "launch": "launching a step",
}


def parity_figure(errors: RowErrors) -> str:
    """Predicted against measured values of every row, one panel a kind of metric."""
    observations = errors.linear.observations
    kinds = np.array([METRICS[metric].kind for _, metric in observations.index])
    present = [kind for kind in _KINDS if (kinds == kind).any()]
    columns = min(len(present), 4)
    figure = _figure(3.1 * columns, 3.0 * -(-len(present) // columns))
    for number, kind in enumerate(present, start=1):
        mask = kinds == kind
        measured = observations.measured[mask]
        axes = figure.add_subplot(-(-len(present) // columns), columns, number)
        axes.loglog(measured, measured * np.exp(errors.fitted[mask]), ".", ms=3, alpha=0.6, color="#1f5f8b")
        ends = np.array([measured.min(), measured.max()])
        axes.loglog(ends, ends, "-", lw=0.8, color="black")
        axes.fill_between(ends, ends * 0.9, ends * 1.1, color="black", alpha=0.08, lw=0)
        axes.set_title(f"{_WORDS[kind]} ({mask.sum()})", fontsize=9)
        axes.set_xlabel("measured", fontsize=8)
        axes.set_ylabel("predicted", fontsize=8)
        _plain_ticks(axes)
    return _png(figure)


def _plain_ticks(axes: Axes) -> None:
    """1, 2, 5 of every decade as plain numbers: a panel may span less than a decade."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=7)


def residual_figure(errors: RowErrors) -> str:
    """Errors by model, by sequences at once and by prompt length; each dot a row, bars the median."""
    figure = _figure(12.4, 3.6)
    panels: tuple[tuple[str, Callable[[MeasuredRun], str | int]], ...] = (
        ("model", lambda run: get_model(run.request.model).name),
        ("sequences at once", sequences_of),
        ("prompt tokens", lambda run: run.request.input_len),
    )
    rows = range(len(errors.fitted))
    for number, (title, key) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 3, number)
        _strip(axes, [key(errors.run(row)) for row in rows], np.expm1(errors.fitted).tolist())
        axes.set_title(f"error by {title}", fontsize=9)
        if number == 1:
            axes.set_ylabel("predicted / measured - 1", fontsize=8)
    return _png(figure)


def _strip(axes: Axes, keys: Sequence[str | int], values: Sequence[float]) -> None:
    names = sorted(set(keys), key=lambda key: (isinstance(key, str), key))
    place = {name: index for index, name in enumerate(names)}
    spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(keys))
    at = np.array([place[key] for key in keys])
    shown = np.clip(np.asarray(values), -1.0, 1.0)
    axes.axhline(0, lw=0.8, color="black")
    axes.plot(at + spread, shown, ".", ms=3, alpha=0.5, color="#1f5f8b")
    for index in range(len(names)):
        axes.plot([index - 0.35, index + 0.35], [np.median(shown[at == index])] * 2, lw=2, color="#b5482a")
    axes.set_xticks(range(len(names)), [str(name) for name in names], rotation=60, ha="right", fontsize=7)
    axes.tick_params(axis="y", labelsize=7)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
