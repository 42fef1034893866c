"""From the arrays of a file to a checked routing profile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.routing.profile import RoutingProfile, from_choices
from moesim.routing.raw_files import CHOICE_KEYS, read_raw
from moesim.routing.warmup import dummy_steps, dummy_tokens

Array = NDArray[Any]
FloatArray = NDArray[np.float64]
_MOST_TOP_K = 32


def read_profile(path: Path, num_experts: int | None = None, keep_warmup: bool = False) -> RoutingProfile:
    """Read recorded routing and cut warm-up and dummy tokens from it.

    Known: counts [layers, experts] or [steps, layers, experts] (SGLang's `logical_count`), choices
    [tokens, layers, top_k] (vLLM's returned routed experts), the LLaDA engine's records.

    Args:
        num_experts: of the model, where known; a trace alone only shows the highest expert it used.
        keep_warmup: cut nothing.

    Raises:
        InputError: the file cannot be used; the line says why, where, and what would work.
    """
    arrays = read_raw(path)
    for key, values in arrays.items():
        if values.dtype.kind not in "biuf":
            named = f" {key!r}" if key else ""
            raise InputError(f"routing: {path} holds an array{named} of {values.dtype}, must be numbers")
    name = next((key for key in CHOICE_KEYS if key in arrays), None)
    if name is None and "" in arrays and _looks_like_choices(arrays[""]):
        name = ""
    if name is not None:
        profile = _choices_profile(arrays[name], path, num_experts, keep_warmup)
    else:
        profile = _counts_profile(next(iter(arrays.values())), path, keep_warmup)
    if num_experts is not None and profile.num_experts != num_experts:
        raise InputError(f"routing: {path} has {profile.num_experts} experts a layer, the model has {num_experts}")
    _check_length(profile, path)
    return profile


def _looks_like_choices(values: Array) -> bool:
    """Whole numbers whose last axis holds distinct ids wherever it was written, from more ids than it is long."""
    if values.ndim != 3 or values.dtype.kind not in "iu" or not values.size or values.shape[2] > _MOST_TOP_K:
        return False
    written = values.any(axis=2)
    ordered = np.sort(values[written], axis=1)
    distinct = (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
    return bool(len(distinct) and distinct.mean() > 0.98 and values.min() >= 0 and values.max() >= values.shape[2])


def _choices_profile(values: Array, path: Path, num_experts: int | None, keep_warmup: bool) -> RoutingProfile:
    if values.ndim != 3 or not values.size:
        raise InputError(f"routing: {path} holds choices of shape {values.shape}; they must be [tokens, layers, top_k]")
    if not np.all(np.isfinite(values)) or np.any(values != np.rint(values)) or values.min() < 0:
        raise InputError(f"routing: {path} holds choices that are no expert numbers (0, 1, 2, ...)")
    choices = values.astype(np.int64)
    if num_experts is not None and choices.max() >= num_experts:
        raise InputError(f"routing: {path} names expert {choices.max()}, the model has {num_experts}")
    dense = np.flatnonzero((choices == 0).all(axis=(0, 2))) if choices.shape[2] > 1 else np.zeros(0, dtype=int)
    kept = np.setdiff1d(np.arange(choices.shape[1]), dense)
    if not len(kept):
        raise InputError(f"routing: {path} holds only zeros: the routed experts were not recorded")
    choices = choices[:, kept]
    cut: dict[str, int] = {}
    if not keep_warmup:
        keep = np.ones(len(choices), dtype=bool)
        for reason, dummy in dummy_tokens(choices).items():
            keep &= ~dummy
            cut |= {reason: int(dummy.sum())} if dummy.any() else {}
        choices = choices[keep]
    if not len(choices):
        raise InputError(f"routing: {path} holds nothing but dummy tokens ({cut}); record real requests")
    experts = num_experts if num_experts is not None else int(choices.max()) + 1
    notes = () if num_experts is not None else (f"{experts} experts: the highest number in the trace (no model given)",)
    words = {"kept_layers": tuple(int(layer) for layer in kept), "num_file_layers": values.shape[1]}
    return from_choices(choices, experts, str(path), cut=cut, notes=notes, **words)


def _counts_profile(values: Array, path: Path, keep_warmup: bool) -> RoutingProfile:
    counts = np.asarray(values, dtype=float)
    if counts.ndim == 1 and counts.size:
        counts = counts[None, :]
    if counts.ndim not in (2, 3) or not counts.size:
        raise InputError(f"routing: {path} holds no table of [layers][experts] counts (shape {counts.shape})")
    stepped = counts.ndim == 3
    counts = counts.reshape(-1, *counts.shape[-2:])
    bad = np.argwhere(~np.isfinite(counts) | (counts < 0))
    if len(bad):
        step, layer, expert = bad[0]
        place = f"step {step + 1} " if stepped else ""
        raise InputError(
            f"routing: {path} {place}row {layer + 1} column {expert + 1}: {counts[tuple(bad[0])]} is no count"
        )
    used = counts.sum(axis=(0, 2)) > 0
    if not used.any() or not (stepped or used.all()):
        raise InputError(f"routing: {path} row {np.argmin(used) + 1}: sums to zero tokens")
    profile = RoutingProfile(
        counts=counts[:, used],
        source=str(path),
        kept_layers=tuple(int(layer) for layer in np.flatnonzero(used)),
        num_file_layers=len(used),
    )
    return profile if keep_warmup or profile.num_steps == 1 else _cut_steps(profile, path)


def _cut_steps(profile: RoutingProfile, path: Path) -> RoutingProfile:
    keep = np.ones(profile.num_steps, dtype=bool)
    cut: dict[str, int] = {}
    for reason, dummy in dummy_steps(profile.counts).items():
        keep &= ~dummy
        cut |= {reason: int(dummy.sum())} if dummy.any() else {}
    if not keep.any():
        raise InputError(f"routing: {path} holds nothing but dummy steps ({cut}); record real requests")
    return replace(profile, counts=profile.counts[keep], cut=cut)


def _check_length(profile: RoutingProfile, path: Path) -> None:
    """Refuse counts so few that uniform routing would look just as uneven."""
    if not profile.is_counted:
        return
    fewest = float(profile.totals.sum(axis=1).min())
    if fewest < profile.num_experts:
        raise InputError(
            f"routing: {path} is too short to say anything: {fewest:.0f} choices in a layer of {profile.num_experts} "
            f"experts (uniform routing would look as uneven); record at least {10 * profile.num_experts} of them"
        )
