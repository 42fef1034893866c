"""Masked diffusion: blocks of denoising forwards over static batches."""

from __future__ import annotations

import pytest

from moesim.engine.diffusion import run_diffusion
from moesim.simulation import simulate_scenario
from tests.scenarios import scenario

LLADA = {"model": "llada-8b", "hardware": "h200", "input_len": 128, "num_prompts": 6}


def e2e(**words: object) -> float:
    result = simulate_scenario(scenario(**{**LLADA, **words}), intervals=False)
    assert result.e2e_ms
    return result.e2e_ms.mean


def test_time_is_proportional_to_the_steps():
    times = [e2e(generation_len=128, steps=steps, block_len=32) for steps in (32, 64, 128)]
    assert times[1] == pytest.approx(2 * times[0], rel=1e-6)
    assert times[2] == pytest.approx(4 * times[0], rel=1e-6)


def test_first_block_comes_after_its_share_of_the_steps():
    result = simulate_scenario(scenario(**LLADA, generation_len=128, steps=128, block_len=32))
    assert result.ttft_ms and result.e2e_ms and result.tpot_ms
    assert result.ttft_ms.mean == pytest.approx(result.e2e_ms.mean / 4, rel=1e-6)
    assert result.tpot_ms.mean == pytest.approx((result.e2e_ms.mean - result.ttft_ms.mean) / 96, rel=1e-6)


def test_caches_recompute_less():
    whole, prefix, dual = (
        e2e(input_len=1024, generation_len=256, steps=256, cache=c) for c in ("none", "prefix", "dual")
    )
    assert dual < prefix < whole


def test_guidance_doubles_the_batch():
    plain, guided = (e2e(input_len=2048, generation_len=128, steps=64, cfg_scale=scale) for scale in (0.0, 1.5))
    assert 1.6 < guided / plain <= 2.05


def test_batches_fill_up_to_max_num_seqs_and_finish_together():
    log = run_diffusion(scenario(**{**LLADA, "num_prompts": 20}, concurrency=20, max_num_seqs=8, generation_len=64))
    assert [count for _, count, _, _ in log.batches] == [8, 8, 4]
    assert len({request.last_token_s for request in log.requests}) == 3
    assert all(request.emitted == 64 for request in log.requests)


def test_an_expert_loop_is_slower_than_one_grouped_product_because_of_the_host():
    words = {"model": "llada-moe-7b", "generation_len": 64, "steps": 64}
    loop = simulate_scenario(scenario(**{**LLADA, **words}, expert_execution="loop"), intervals=False)
    grouped = simulate_scenario(scenario(**{**LLADA, **words}, expert_execution="grouped"), intervals=False)
    assert loop.breakdown.limited_by == "host"
    assert loop.duration_s > 2 * grouped.duration_s


def test_replicas_of_a_diffusion_model_share_the_load():
    lone = simulate_scenario(scenario(**{**LLADA, "num_prompts": 16}, concurrency=16, max_num_seqs=1), intervals=False)
    four = simulate_scenario(
        scenario(**{**LLADA, "num_prompts": 16}, concurrency=16, max_num_seqs=1, gpus=4, tp=1, dp=4), intervals=False
    )
    assert four.output_tokens_per_s == pytest.approx(4 * lone.output_tokens_per_s, rel=1e-6)
