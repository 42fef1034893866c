"""A routing profile: who went to which expert, over time, with where it came from and what was cut from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
SCHEMA_VERSION = 1
MOST_WINDOWS = 32


@dataclass(frozen=True, slots=True)
class RoutingProfile:
    """Tokens per expert [steps, layers, experts], and the choices themselves where they were recorded.

    `choices` [tokens, layers, top_k] (expert ids in token order) or None. `steps` are engine steps, or equal
    windows of a token trace; a profile without time has one. `kept_layers`: the file's numbers of the layers kept
    (dense layers of a dump hold nothing). `cut`: what was removed as warm-up, in words, with counts.
    """

    counts: FloatArray
    source: str
    choices: IntArray | None = None
    kept_layers: tuple[int, ...] = ()
    num_file_layers: int = 0
    cut: dict[str, int] = field(default_factory=dict[str, int])
    notes: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        """Steps or windows."""
        return self.counts.shape[0]

    @property
    def num_layers(self) -> int:
        """Layers with routed experts."""
        return self.counts.shape[1]

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return self.counts.shape[2]

    @property
    def top_k(self) -> int | None:
        """Experts of a token, known for recorded choices."""
        return None if self.choices is None else self.choices.shape[2]

    @property
    def totals(self) -> FloatArray:
        """Tokens per expert over the whole profile [layers, experts]."""
        return self.counts.sum(axis=0)

    @property
    def is_counted(self) -> bool:
        """True for whole numbers of tokens, False for weights (which have no sample size)."""
        return bool(np.all(self.counts == np.rint(self.counts)))

    def digest(self) -> str:
        """sha256 of version, shape and values: the identity of the routing, wherever it was read from."""
        state = hashlib.sha256(f"moesim.routing/{SCHEMA_VERSION} {self.counts.shape}".encode())
        state.update(np.ascontiguousarray(self.counts, dtype="<f8").tobytes())
        if self.choices is not None:
            state.update(np.ascontiguousarray(self.choices, dtype="<i8").tobytes())
        return state.hexdigest()

    def part(self, first: float, last: float) -> RoutingProfile:
        """The steps between two shares of the profile (0 to 1), choices cut likewise."""
        low, high = round(first * self.num_steps), round(last * self.num_steps)
        choices = self.choices
        if choices is not None:
            choices = choices[round(first * len(choices)) : round(last * len(choices))]
        return replace(self, counts=self.counts[low:high], choices=choices)


def from_choices(choices: IntArray, num_experts: int, source: str, **words: Any) -> RoutingProfile:
    """Profile of recorded choices [tokens, layers, top_k], its time cut into up to 32 windows of equal length."""
    tokens, layers, _ = choices.shape
    windows = max(1, min(MOST_WINDOWS, tokens // 8))
    edges = np.linspace(0, tokens, windows + 1).round().astype(int)
    counts = np.zeros((windows, layers, num_experts))
    for window in range(windows):
        for layer in range(layers):
            ids = choices[edges[window] : edges[window + 1], layer].ravel()
            counts[window, layer] = np.bincount(ids, minlength=num_experts)
    return RoutingProfile(counts=counts, source=source, choices=choices.astype(np.int64), **words)


def describe(profile: RoutingProfile) -> dict[str, Any]:
    """Version, digest, source, sizes and cuts, as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "digest": profile.digest(),
        "source": profile.source,
        "steps": profile.num_steps,
        "layers": profile.num_layers,
        "experts": profile.num_experts,
        "top_k": profile.top_k,
        "tokens_routed": float(profile.counts.sum()),
        "cut": dict(profile.cut),
        "notes": list(profile.notes),
    }


def save_profile(profile: RoutingProfile, path: Path) -> None:
    """Write the profile as NPZ: `logical_count`, `routed_experts` where known, and `profile` (JSON text).

    Raises:
        InputError: the file cannot be written.
    """
    arrays: dict[str, Any] = {"logical_count": profile.counts, "profile": np.array(json.dumps(describe(profile)))}
    if profile.choices is not None:
        arrays["routed_experts"] = profile.choices.astype(np.int16)
    try:
        with path.open("wb") as stream:
            np.savez_compressed(stream, **arrays)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
