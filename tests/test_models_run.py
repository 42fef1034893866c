"""Every model of the contract runs where it fits, in the engine that its decoding needs."""

from __future__ import annotations

import pytest

from moesim.placement.fit import smallest_tensor_parallel
from moesim.simulation import simulate_scenario
from moesim.specs.catalog import get_hardware, get_model, list_models
from moesim.specs.deployment import Deployment
from moesim.specs.hardware import make_cluster
from tests.scenarios import scenario

EIGHT = [
    "llada-moe-7b", "llada-8b", "qwen1.5-moe-a2.7b", "olmoe-1b-7b", "mixtral-8x7b", "qwen2-57b-a14b", "dbrx",
    "deepseek-v3",
]  # fmt: skip


def smallest(name: str, card: str) -> int:
    cluster = make_cluster(get_hardware(card), 1)
    count = smallest_tensor_parallel(get_model(name), Deployment(max_num_seqs=64), cluster, 640)
    assert count is not None
    return count


@pytest.mark.parametrize("card", ["mi300x", "h200"])
@pytest.mark.parametrize("name", EIGHT)
def test_the_eight_models_on_both_cards(name: str, card: str):
    result = simulate_scenario(scenario(name, card, gpus=smallest(name, card), num_prompts=8), intervals=False)
    diffusion = name.startswith("llada")
    assert result.decoding == ("masked_diffusion" if diffusion else "autoregressive")
    assert result.output_tokens_per_s > 0
    assert result.ttft_ms and result.e2e_ms
    assert result.ttft_ms.p50 <= result.e2e_ms.p50


@pytest.mark.parametrize("name", sorted(set(list_models()) - set(EIGHT)))
def test_the_further_models_run_as_well(name: str):
    result = simulate_scenario(scenario(name, "b200", gpus=smallest(name, "b200"), num_prompts=4), intervals=False)
    assert result.output_tokens_per_s > 0


@pytest.mark.parametrize("card", ["mi300x", "h200"])
def test_deepseek_on_four_nodes_of_eight(card: str):
    words = {"gpus": 32, "nodes": 4, "concurrency": 256, "num_prompts": 256, "input_len": 256, "output_len": 32}
    spread = simulate_scenario(scenario("deepseek-v3", card, tp=1, dp=32, ep=32, **words))
    hybrid = simulate_scenario(scenario("deepseek-v3", card, tp=8, dp=4, ep=32, **words))
    for result in (spread, hybrid):
        assert result.num_gpus == 32
        assert result.breakdown.operators["expert exchange"] > 0
        assert result.utilization.network_time > 0


def test_pipelines_over_nodes():
    result = simulate_scenario(scenario("deepseek-v3", "h100", gpus=16, tp=8, pp=2, num_prompts=16), intervals=False)
    assert result.breakdown.operators["pipeline transfer"] > 0


def test_llada_forwards_follow_their_settings():
    slow = simulate_scenario(scenario("llada-moe-7b", "mi300x", num_prompts=2, generation_len=128, steps=128))
    fast = simulate_scenario(scenario("llada-moe-7b", "mi300x", num_prompts=2, generation_len=128, steps=32))
    assert fast.output_tokens_per_s == pytest.approx(4 * slow.output_tokens_per_s, rel=0.01)
