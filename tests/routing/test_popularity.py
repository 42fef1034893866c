"""Popularity says what the sampler then draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.readers import read_measurements
from calibration.readers.steps import routing_of
from moesim.routing.loads import make_bank
from moesim.routing.popularity import popularity
from moesim.specs.catalog import get_model
from moesim.specs.routing import Routing, parse_routing

FORCED = Path(__file__).parents[2] / "calibration/data/h100x2"


@pytest.mark.parametrize("model", ["deepseek-v3", "kimi-k2", "qwen3-30b-a3b", "mixtral-8x7b"])
def test_identical_tokens_touch_exactly_top_k_experts(model: str) -> None:
    """Also where only the experts of some groups can be chosen together (DeepSeek-V3: 4 of 8 groups)."""
    moe = get_model(model).moe
    assert moe is not None
    bank = make_bank(moe, parse_routing("identical"), num_layers=16, seed=3)
    hot = bank.inclusion > 0
    assert (hot.sum(axis=1) == moe.top_k).all()
    assert (bank.inclusion[hot] == 1).all()
    assert len(np.unique(hot, axis=0)) > 1, "layers have hot experts of their own"


def _counted() -> list[tuple[str, float, int, float, float]]:
    """(model, exponent, ranks, most loaded expert over the mean, most loaded rank over the mean) of forced prefills."""
    found = []
    for path in sorted(FORCED.glob("*-forced-*.jsonl.gz")):
        for item in read_measurements(path):
            routing = routing_of(item)
            if item.kind == "prefill_step" and routing and not item.flags.get("enable_eplb"):
                loads = (item.values["routed_max_over_mean"], item.values["routed_rank_max_over_mean"])
                exponent = float(routing.partition(":")[2] or 0)
                found.append((item.model, exponent, item.flags["expert_parallel_size"], *loads))
    return found


@pytest.mark.parametrize(("model", "exponent", "ranks", "expert", "rank"), sorted(set(_counted())))
def test_falling_routing_loads_experts_and_ranks_as_a_running_vllm_counted(model, exponent, ranks, expert, rank):
    """Prompts of 16,000 tokens, of which vLLM counted a few hundred a layer: the largest of many counts is above its
    mean by their noise.
    """
    moe = get_model(model).moe
    assert moe is not None
    bank = make_bank(moe, Routing(kind="falling", strength=exponent), 1, 0)
    loads = bank.inclusion[0] * moe.num_experts / moe.top_k
    assert loads.max() == pytest.approx(expert, rel=0.04 if exponent else 0.2)
    assert loads.reshape(ranks, -1).mean(axis=1).max() == pytest.approx(rank, rel=0.01)


@given(exponent=st.floats(0, 4), seed=st.integers(0, 9))
def test_falling_routing_is_zipf_in_the_order_of_the_numbers(exponent, seed):
    moe = get_model("olmoe-1b-7b").moe
    assert moe is not None
    falling, zipf = (
        popularity(Routing(kind=kind, strength=exponent), moe, 3, np.random.default_rng(seed))
        for kind in ("falling", "zipf")
    )
    assert np.all(np.diff(falling, axis=1) <= 0)
    assert np.all(falling == falling[0])
    np.testing.assert_allclose(np.sort(zipf, axis=1), np.sort(falling, axis=1))
