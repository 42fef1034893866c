"""What splitting a model over GPUs adds to a step: waits, lookups, launches of exchanges, and nothing on one GPU."""

import numpy as np
import pytest

from moesim.costs.closed_form import Batch, estimate_step
from moesim.costs.layout import make_layout
from moesim.costs.operators import exchange_of, rank_operators
from moesim.costs.step import host_seconds
from moesim.scenarios import Request, make_scenario

SIZES = np.array([1.0, 16.0, 256.0, 4096.0])


def layout(model="qwen1.5-moe-a2.7b", **words):
    case = make_scenario(Request(model=model, hardware="h200", concurrency=8, **words))
    return make_layout(case.model, case.deployment, case.cluster, case.parameters, case.routing, case.seed)


def test_equal_ranks_wait_for_each_other_twice_a_layer():
    """An all-reduce after attention and one after the experts; a dispatch and a combine around them."""
    for words, operator, calls in (({"tp": 4}, "tensor-parallel all-reduce", 48), ({"dp": 4, "ep": 4}, "", 48)):
        split = layout(gpus=4, **words)
        cost = rank_operators(split, SIZES)[operator] if operator else exchange_of(split, SIZES)
        skew_s = calls * split.parameters["collective_skew_s"]
        assert np.all(cost.network_s > skew_s)
        assert np.all(np.diff(cost.network_s) >= 0)


def test_one_gpu_waits_for_none():
    alone = layout()
    assert rank_operators(alone, SIZES)["tensor-parallel all-reduce"].seconds.tolist() == [0.0] * 4
    assert exchange_of(alone, SIZES).seconds.tolist() == [0.0] * 4


def test_a_rank_with_some_of_the_experts_looks_its_own_up():
    router = [rank_operators(layout(gpus=4, **words), SIZES)["router"] for words in ({"tp": 4}, {"tp": 4, "ep": 4})]
    assert router[1].launches - router[0].launches == pytest.approx(3 * 24)
    assert np.all(router[1].seconds > router[0].seconds)


def test_exchanges_are_launched_one_by_one_only_where_no_graph_holds_them():
    exchanging, alone = layout(gpus=2, dp=2, ep=2), layout(gpus=2, tp=2)
    more = [
        host_seconds(exchanging, 1.0, captured, 8, 0)[1] - host_seconds(alone, 1.0, captured, 8, 0)[1]
        for captured in (1, 0)
    ]
    assert more == pytest.approx([0.0, 24 * exchanging.parameters["host_exchange_s"]])


def test_sampling_passes_over_every_logit():
    """Qwen's 151936 logits a row against Mixtral's 32000, which share a set of constants."""
    steps = {name: [estimate_step(layout(name), Batch(decodes=rows, context_tokens=256)) for rows in (64, 256)]
             for name in ("qwen1.5-moe-a2.7b", "mixtral-8x7b")}  # fmt: skip
    grown = {name: two.operators["sampling"] - one.operators["sampling"] for name, (one, two) in steps.items()}
    assert grown["qwen1.5-moe-a2.7b"] / grown["mixtral-8x7b"] == pytest.approx(151936 / 32000)
    first = steps["mixtral-8x7b"][0].operators["sampling"]
    assert first > layout("mixtral-8x7b").parameters["sampling_s"]
