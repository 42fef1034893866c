"""Routed experts of a step: loads conserve slots, distinct experts meet their expectation, the slowest rank decides."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.costs.experts import deployed_kernel, rank_loads, routed_experts
from moesim.costs.layout import Layout, make_layout
from moesim.placement.deployed import expert_layout
from moesim.routing.loads import expected_distinct
from tests.scenarios import scenario

SIZES = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096)


def layout_of(**words) -> Layout:
    item = scenario(**words)
    return make_layout(item.model, item.deployment, item.cluster, item.parameters, item.routing, item.seed)


def loads_of(layout: Layout):
    moe = layout.model.moe
    assert moe is not None
    placed = expert_layout(layout.deployment)
    return rank_loads(moe, layout.routing, layout.model.num_moe_layers, 0, SIZES, placed, rule="tokens")


@pytest.mark.parametrize("words", [{}, {"gpus": 4, "ep": 4}])
def test_loads_conserve_slots_and_tiles_hold_them(words):
    loads = loads_of(layout_of(model="qwen3-30b-a3b", **words))
    slots = np.array(SIZES) * 8.0
    assert loads.rows.sum(axis=2) == pytest.approx(np.broadcast_to(slots[:, None], loads.rows.shape[:2]))
    assert np.all(loads.tiles * loads.tiling.rows >= loads.rows - 1e-6)
    assert np.all(loads.distinct <= loads.tiles + 1e-9)
    assert np.all(loads.distinct <= 128 / loads.rows.shape[2])


def test_distinct_experts_meet_their_expectation():
    loads = loads_of(layout_of(model="qwen3-30b-a3b"))
    expected = expected_distinct(np.full(128, 8 / 128), np.array(SIZES, dtype=float))
    assert loads.distinct.mean(axis=(1, 2)) == pytest.approx(expected, rel=0.03)


def test_the_slowest_rank_is_no_faster_than_the_mean_and_skew_slows_it():
    layout = layout_of(model="qwen3-30b-a3b", gpus=4, ep=4)
    skewed = layout_of(model="qwen3-30b-a3b", gpus=4, ep=4, routing="zipf:1.2")
    tokens = np.array(SIZES)
    even, uneven = routed_experts(layout, tokens), routed_experts(skewed, tokens)
    assert np.all(even.slowest.seconds >= even.mean_rank_s - 1e-12)
    assert np.all(uneven.slowest.seconds[-3:] > 1.02 * even.slowest.seconds[-3:])


def test_sharding_the_experts_over_four_gpus_divides_what_is_read():
    alone, four = layout_of(model="mixtral-8x7b"), layout_of(model="mixtral-8x7b", gpus=4, tp=4)
    tokens = np.array([8, 64])
    ratio = routed_experts(alone, tokens).slowest.seconds / routed_experts(four, tokens).slowest.seconds
    assert np.all((ratio > 2.5) & (ratio < 4.0))


@pytest.mark.parametrize(
    ("model", "words", "kernel"),
    [
        ("mixtral-8x7b", {}, "bf16"),
        ("mixtral-8x7b", {"quantization": "fp8"}, "fp8"),
        ("deepseek-v3", {"gpus": 8, "tp": 8}, "block"),
        ("deepseek-v3", {"gpus": 8, "ep": 8}, "cutlass_block"),
        ("gpt-oss-120b", {}, "mxfp4"),
        ("kimi-k2.5", {"gpus": 8, "tp": 8}, "int4"),
    ],
)
def test_each_format_runs_on_the_kernel_of_its_table(model, words, kernel):
    assert deployed_kernel(layout_of(model=model, **words)).name == kernel
