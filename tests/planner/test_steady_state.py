"""The closed form against the simulation that it summarises."""

from __future__ import annotations

import pytest

from moesim.errors import InputError
from moesim.planner.steady_state import steady_state
from moesim.simulation import simulate_scenario
from tests.scenarios import scenario

CASES = [
    ("mixtral-8x7b", "h200", {"gpus": 8}),
    ("mixtral-8x7b", "mi300x", {"gpus": 2, "enforce_eager": True}),
    ("deepseek-v3", "h200", {"gpus": 8}),
    ("olmoe-1b-7b", "a100-80gb", {"gpus": 1}),
    ("gpt-oss-120b", "b200", {"gpus": 1}),
]


@pytest.mark.parametrize(("model", "hardware", "words"), CASES)
def test_a_decode_step_is_the_simulated_inter_token_latency(model: str, hardware: str, words: dict[str, object]):
    built = scenario(model, hardware, concurrency=16, num_prompts=16, input_len=128, output_len=256, **words)
    state = steady_state(built, 16)
    simulated = simulate_scenario(built)
    assert simulated.itl_ms
    assert state.decode.seconds * 1e3 == pytest.approx(simulated.itl_ms.p50, rel=0.04)
    assert state.decode.limited_by in {"HBM bandwidth", "kernel launch", "host", "network", "compute"}


def test_rows_add_up_to_the_steps():
    state = steady_state(scenario("dbrx", "h200", gpus=4), 16)
    for step, column in ((state.decode, "decode_ms"), (state.prefill, "prefill_ms")):
        assert sum(row[column] for row in state.rows()) == pytest.approx(step.seconds * 1e3, rel=1e-9)


def test_batch_reads_more_experts_until_all_are_read():
    """Weights are read once however many tokens want them: bytes grow with the batch and then level off."""
    built = scenario("mixtral-8x7b", "h200", gpus=8, max_num_seqs=512)
    moved = [steady_state(built, batch).decode.hbm_bytes for batch in (1, 2, 4, 16, 64, 256)]
    assert moved == sorted(moved)
    assert moved[2] > 2 * moved[0]
    assert moved[4] < 1.6 * moved[3]


def test_batches_out_of_range_and_diffusion_models_are_refused():
    with pytest.raises(InputError, match="batch"):
        steady_state(scenario(gpus=2, max_num_seqs=8), 9)
    with pytest.raises(InputError, match="diffusion"):
        steady_state(scenario("llada-8b", "h200"), 1)
