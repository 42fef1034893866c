"""The imbalance report of a profile: by layer, by expert, by rank, over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.routing.coactivation import coactivation, layer_affinity, top_pairs
from moesim.routing.imbalance import (
    balancedness_mean_of_ratios,
    balancedness_ratio_of_sums,
    coefficient_of_variation,
    cold_experts,
    entropy_bits,
    gini,
    hot_experts,
    jain_index,
    max_over_mean,
)
from moesim.routing.profile import RoutingProfile, describe
from moesim.routing.significance import layer_significance

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_PAIRS = 5


@dataclass(frozen=True, slots=True)
class ImbalanceReport:
    """Statistics of a profile; `rank_loads` [steps, layers, ranks] under a map, None without ranks.

    `top_k` was used for the comparison with uniform routing.
    """

    profile: RoutingProfile
    top_k: int
    layers: list[dict[str, Any]]
    rank_loads: FloatArray | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract of `moesim imbalance`."""
        return {
            "layers": self.layers,
            "ranks": rank_rows(self.rank_loads, self.profile),
            "balancedness": balancedness(self.rank_loads),
            "over_time": over_time(self.profile, self.rank_loads),
            "coactivation": _coactivation(self.profile),
            "summary": self.summary(),
            "profile": describe(self.profile),
            "notes": list(self.profile.notes),
        }

    def summary(self) -> dict[str, Any]:
        """Means over layers."""
        names = ("gini", "cv", "max_over_mean", "jain", "entropy_bits")
        means = {f"mean_{name}": float(np.mean([row[name] for row in self.layers])) for name in names}
        known = [row["significant"] for row in self.layers if row["significant"] is not None]
        return {**means, "layers_significant": sum(known) if known else None, "top_k": self.top_k}


def imbalance_report(
    profile: RoutingProfile, top_k: int, rank_loads: FloatArray | None, rng: np.random.Generator
) -> ImbalanceReport:
    """Statistics of every layer. `top_k`: experts of a token (1 when unknown: treats choices as tokens)."""
    totals = profile.totals
    numbers = profile.kept_layers or tuple(range(profile.num_layers))
    rows = [_layer_row(profile, layer, number, totals[layer], top_k, rng) for layer, number in enumerate(numbers)]
    return ImbalanceReport(profile, top_k, rows, rank_loads)


def _layer_row(
    profile: RoutingProfile, layer: int, number: int, loads: FloatArray, top_k: int, rng: np.random.Generator
) -> dict[str, Any]:
    chance = layer_significance(profile, layer, top_k, rng)
    return {
        "layer": number,
        "gini": float(gini(loads)),
        "gini_expected_uniform": chance.gini_expected_uniform,
        "gini_interval_90": list(chance.interval_90),
        "p_value": chance.p_value,
        "significant": chance.significant,
        "cv": float(coefficient_of_variation(loads)),
        "max_over_mean": float(max_over_mean(loads)),
        "jain": float(jain_index(loads)),
        "entropy_bits": float(entropy_bits(loads)),
        "expert_loads": [float(value) for value in loads],
        "hot_experts": hot_experts(loads),
        "cold_experts": cold_experts(loads),
    }


def rank_rows(rank_loads: FloatArray | None, profile: RoutingProfile) -> list[dict[str, Any]] | None:
    """One row a layer: load of each rank and how uneven they are, over the whole profile and step by step."""
    if rank_loads is None:
        return None
    numbers = profile.kept_layers or tuple(range(profile.num_layers))
    totals = rank_loads.sum(axis=0)
    steps = max_over_mean(rank_loads)
    return [
        {
            "layer": number,
            "loads": [float(value) for value in totals[layer]],
            "max_over_mean": float(max_over_mean(totals[layer])),
            "per_step_max_over_mean": float(steps[:, layer].mean()),
            "gini": float(gini(totals[layer])),
            "cv": float(coefficient_of_variation(totals[layer])),
        }
        for layer, number in enumerate(numbers)
    ]


def balancedness(rank_loads: FloatArray | None) -> dict[str, float] | None:
    """Both definitions in use, averaged over steps with tokens: named, since they differ."""
    if rank_loads is None:
        return None
    steps = rank_loads[rank_loads.sum(axis=(1, 2)) > 0]
    return {
        "vllm_ratio_of_sums": float(np.mean([balancedness_ratio_of_sums(step) for step in steps])),
        "sglang_mean_of_ratios": float(np.mean([balancedness_mean_of_ratios(step) for step in steps])),
    }


def over_time(profile: RoutingProfile, rank_loads: FloatArray | None) -> list[dict[str, Any]]:
    """One row a step or window: mean Gini, and how far the experts' shares moved since the one before.

    `drift`: total-variation distance of the shares (0 the same, 1 disjoint), mean over layers; what chance gives
    for so few tokens is in it. `hot_kept`: share of the hottest tenth of experts that was so before.
    """
    sums = profile.counts.sum(axis=2, keepdims=True)
    shares = np.divide(profile.counts, sums, out=np.zeros_like(profile.counts), where=sums > 0)
    count = max(1, profile.num_experts // 10)
    hottest = np.argsort(-profile.counts, axis=2, kind="stable")[:, :, :count]
    rows: list[dict[str, Any]] = []
    for step in range(profile.num_steps):
        row: dict[str, Any] = {
            "step": step,
            "choices": float(profile.counts[step].sum()),
            "gini": float(gini(profile.counts[step]).mean()),
            "drift": None,
            "hot_kept": None,
            "rank_max_over_mean": None if rank_loads is None else float(max_over_mean(rank_loads[step]).mean()),
        }
        if step:
            row["drift"] = float(np.abs(shares[step] - shares[step - 1]).sum(axis=1).mean() / 2)
            pairs = zip(hottest[step], hottest[step - 1], strict=True)
            row["hot_kept"] = float(np.mean([np.isin(now, before).mean() for now, before in pairs]))
        rows.append(row)
    return rows


def _coactivation(profile: RoutingProfile) -> dict[str, Any] | None:
    pairs = coactivation(profile)
    if pairs is None or profile.choices is None:
        return None
    affinity = layer_affinity(profile)
    numbers = profile.kept_layers or tuple(range(profile.num_layers))
    tokens = len(profile.choices)
    return {
        "top_pairs": [
            {"layer": number, "pairs": top_pairs(pairs[layer], tokens, _PAIRS)} for layer, number in enumerate(numbers)
        ],
        "layer_affinity": None if affinity is None else [float(value) for value in affinity],
    }
