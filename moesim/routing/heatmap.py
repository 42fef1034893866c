"""Heat maps of a profile: expert by layer, rank by time, and experts that meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.coactivation import coactivation
from moesim.routing.profile import RoutingProfile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = NDArray[np.float64]
_SUFFIXES = (".png", ".svg", ".pdf")


def plot_profile(
    profile: RoutingProfile, rank_loads: FloatArray | None, curve: list[dict[str, Any]] | None, path: Path
) -> None:
    """Draw what is known: experts x layers, ranks x time, co-activation of the first layer, imbalance to latency.

    Args:
        rank_loads: [steps, layers, ranks] or None.
        curve: rows with `rank_max_over_mean`, `step_ms`, `gini` or None.

    Raises:
        InputError: unknown suffix, or a file that cannot be written.
    """
    if path.suffix not in _SUFFIXES:
        raise InputError(f"plot: {path} has suffix {path.suffix!r}; use one of {', '.join(_SUFFIXES)}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts: list[Callable[[Axes], None]] = [partial(_experts, profile=profile)]
    if rank_loads is not None:
        parts.append(partial(_ranks, rank_loads=rank_loads))
    if profile.choices is not None:
        parts.append(partial(_pairs, profile=profile))
    if curve:
        parts.append(partial(_curve, curve=curve))
    figure = Figure(figsize=(11, 3.6 * len(parts)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(len(parts), 1))
    for axis, draw in zip(axes, parts, strict=True):
        draw(axis)
    figure.suptitle(f"{Path(profile.source).name}: {profile.counts.sum():,.0f} choices", fontsize=11)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise InputError(f"plot: {path} cannot be written ({error.strerror or error})") from None


def _image(axis: Axes, values: FloatArray, labels: tuple[str, str, str], title: str, top: float | None = None) -> None:
    image = axis.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
    axis.set_xlabel(labels[0])
    axis.set_ylabel(labels[1])
    axis.set_title(title, fontsize=10)
    colours = axis.figure.colorbar(image, ax=axis, pad=0.01)
    colours.set_label(labels[2])


def _experts(axis: Axes, profile: RoutingProfile) -> None:
    """Load of each expert over its layer's mean; the colour scale ends at the 99.5th percentile."""
    totals = profile.totals
    relative = totals / totals.mean(axis=1, keepdims=True)
    top = max(float(np.percentile(relative, 99.5)), 1.5)
    _image(axis, relative, ("expert", "layer", "load over mean"), "Tokens of each expert in each layer", top)
    if profile.num_layers <= 24 and profile.kept_layers:
        axis.set_yticks(range(profile.num_layers), [str(layer) for layer in profile.kept_layers])


def _ranks(axis: Axes, rank_loads: FloatArray) -> None:
    """Mean over layers of each rank's load over the step's mean rank."""
    mean = rank_loads.mean(axis=2, keepdims=True)
    relative = np.divide(rank_loads, mean, out=np.ones_like(rank_loads), where=mean > 0).mean(axis=1)
    _image(axis, relative.T, ("step or window", "rank", "load over mean"), "Load of each rank over time (mean layer)")
    if rank_loads.shape[2] <= 16:
        axis.set_yticks(range(rank_loads.shape[2]))


def _pairs(axis: Axes, profile: RoutingProfile) -> None:
    """Lift of every pair of experts in the first layer: meetings over what independent choices would give."""
    pairs = coactivation(profile)
    assert pairs is not None
    assert profile.choices is not None
    first = pairs[0] * (1 - np.eye(profile.num_experts))
    uses = np.diag(pairs[0])
    lift = first * len(profile.choices) / np.maximum(np.outer(uses, uses), 1.0)
    top = max(float(np.percentile(lift, 99.5)), 1.5)
    _image(axis, lift, ("expert", "expert", "lift"), "Experts that serve the same token (first layer)", top)


def _curve(axis: Axes, curve: list[dict[str, Any]]) -> None:
    """Step time against how far the fullest rank lies above the mean."""
    ratio = [row["rank_max_over_mean"] for row in curve]
    axis.plot(ratio, [row["step_ms"] for row in curve], "o-", label="step")
    axis.plot(ratio, [row["slowest_rank_experts_ms"] for row in curve], "s--", label="experts, slowest rank")
    axis.plot(ratio, [row["mean_rank_experts_ms"] for row in curve], "^:", label="experts, mean rank")
    for row in curve[2:]:
        place = row["rank_max_over_mean"], row["step_ms"]
        axis.annotate(row["routing"], place, (0, 5), textcoords="offset points", fontsize=7, ha="center")
    axis.set_xlabel("fullest rank over mean")
    axis.set_ylabel("ms")
    axis.set_ylim(0, 1.15 * max(row["step_ms"] for row in curve))
    axis.set_title("Imbalance to latency, one decode step", fontsize=10)
    axis.legend(fontsize=8)
