"""Recommendations: only what fits, best first, with reasons that the numbers bear out."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.placement.strategies import STRATEGIES
from moesim.planner.recommendation import Recommendation
from moesim.planner.search import Goal, check_goal, recommend_scenario
from moesim.scenarios import Request, make_planning_scenario
from moesim.specs.scenario import Scenario

DEPTHS = (4, 64)


def question(model: str = "mixtral-8x7b", hardware: str = "h200", gpus: int = 8, **words: object) -> Scenario:
    words = {"input_len": 128, "output_len": 32, **words}
    return make_planning_scenario(Request(model=model, hardware=hardware, gpus=gpus, **words))  # pyright: ignore[reportArgumentType]


def recommend(goal: Goal | None = None, depths: tuple[int, ...] = DEPTHS, **words: object) -> Recommendation:
    return recommend_scenario(question(**words), goal or Goal(), depths=depths, top=100)  # pyright: ignore[reportArgumentType]


@settings(max_examples=12, deadline=None)
@given(
    model=st.sampled_from(["mixtral-8x7b", "qwen2-57b-a14b", "dbrx", "deepseek-v3", "llada-moe-7b"]),
    hardware=st.sampled_from(["a100-40gb", "a100-80gb", "h200", "mi300x"]),
    gpus=st.sampled_from([1, 2, 4, 8]),
)
def test_nothing_is_offered_that_does_not_fit(model: str, hardware: str, gpus: int):
    try:
        answer = recommend(model=model, hardware=hardware, gpus=gpus, depths=(8,))
    except InputError as error:
        assert re.search(r"does not fit.*(smallest|no tensor-parallel)", str(error))
        return
    for item in answer.candidates:
        memory = item.predicted.memory
        assert memory.reserved_bytes <= 0.9 * memory.visible_bytes * (1 + 1e-9)
        assert memory.kv_tokens >= 160
    names = {item.deployment.strategy for item in answer.candidates}
    equal = {name for item in answer.candidates for name in item.equal_to}
    refused = {item.name.partition(" ")[0] for item in answer.refused}
    expected = set(STRATEGIES) if gpus > 2 else set(STRATEGIES) - {"tp_ep_hybrid"}
    assert names | equal | refused >= expected
    assert all(item.reason for item in answer.refused)


def test_candidates_come_best_first():
    scores = [item.predicted.output_tokens_per_s for item in recommend().candidates]
    assert scores == sorted(scores, reverse=True)
    latencies = [item.predicted.e2e_ms.mean for item in recommend(Goal("latency")).candidates if item.predicted.e2e_ms]
    assert latencies == sorted(latencies)


def test_limits_come_before_throughput():
    free = recommend()
    assert free.best.predicted.tpot_ms
    limit = free.best.predicted.tpot_ms.p90 * 0.6
    tight = recommend(Goal("throughput", tpot_slo_ms=limit))
    assert tight.best.predicted.tpot_ms
    assert tight.best.predicted.tpot_ms.p90 <= limit
    assert tight.best.predicted.output_tokens_per_s <= free.best.predicted.output_tokens_per_s
    met = [item.meets_slo for item in tight.candidates]
    assert met == sorted(met, reverse=True)


def test_an_impossible_limit_is_said_first():
    answer = recommend(Goal("throughput", tpot_slo_ms=0.01))
    assert answer.explanation[0] == "No deployment meets p90 TPOT 0.01 ms."
    assert not answer.best.meets_slo


def test_one_gpu_has_one_strategy_and_names_its_equals():
    answer = recommend(gpus=1, model="olmoe-1b-7b")
    assert {item.deployment.strategy for item in answer.candidates} == {"colocate_single"}
    assert answer.best.equal_to == ("tp_only", "ep_only", "dp_ep")


def test_experts_that_do_not_divide_are_refused_with_the_reason():
    answer = recommend(model="qwen1.5-moe-a2.7b", gpus=8)
    reasons = {item.name: item.reason for item in answer.refused}
    assert "60 experts" in reasons["ep_only"]
    assert "60 experts" in reasons["dp_ep"]


def test_explanation_names_winner_limit_next_strategy_and_depth():
    answer = recommend()
    text = " ".join(answer.explanation)
    best = answer.best
    assert f"{best.deployment.strategy} (tp {best.deployment.tensor_parallel_size}" in text
    assert f"limited by {best.predicted.breakdown.limited_by}" in text
    assert "next best strategy" in text
    assert re.search(r"(Deeper|Shallower) \(max_num_seqs \d+\)", text)


def test_command_starts_that_deployment():
    for item in recommend(model="deepseek-v3", hardware="mi300x").candidates:
        deployment, command = item.deployment, item.command
        assert "vllm serve deepseek-ai/DeepSeek-V3" in command
        assert f"--max-num-seqs {deployment.max_num_seqs}" in command
        tp = re.search(r"--tensor-parallel-size (\d+)", command)
        assert int(tp[1] if tp else 1) == deployment.tensor_parallel_size
        assert ("--enable-expert-parallel" in command) == (deployment.expert_parallel_size > 1)
        dp = re.search(r"--data-parallel-size (\d+)", command)
        assert int(dp[1] if dp else 1) == deployment.lockstep_ranks


def test_replicas_get_their_own_servers():
    item = next(item for item in recommend(depths=(4,)).candidates if item.deployment.strategy == "colocate_single")
    assert "seq 0 7" in item.command
    assert "CUDA_VISIBLE_DEVICES=$i" in item.command


def test_arrivals_keep_their_rate_at_every_depth():
    answer = recommend(request_rate=4.0, num_prompts=60)
    rates = [item.predicted.requests_per_s for item in answer.candidates]
    assert max(rates) < 4.0 * 1.3


def test_frame_and_json_agree():
    answer = recommend(gpus=2)
    frame = answer.to_frame()
    assert list(frame["strategy"]) == [item["strategy"] for item in answer.to_dict()["recommendations"]]
    assert len(frame) == len(answer.candidates)


@pytest.mark.parametrize(
    "goal", [Goal("speed"), Goal("latency", ttft_slo_ms=-1), Goal("latency", tpot_slo_ms=float("nan"))]
)
def test_bad_goals_are_refused(goal: Goal):
    with pytest.raises(InputError):
        check_goal(goal)


def test_whole_waves_make_depths_comparable():
    """Every candidate serves full waves of its own clients, so no depth is judged by a half-empty last one."""
    answer = recommend(depths=(4, 16, 64, 256))
    for item in answer.candidates:
        clients = item.deployment.max_num_seqs * item.deployment.data_parallel_size
        assert item.predicted.num_requests % clients == 0
        assert item.predicted.num_requests >= 2 * clients


def test_the_default_load_ignores_the_given_sizes():
    built = question(gpus=8)
    assert built.cluster.num_accelerators == 8
    assert msgspec.structs.replace(built) == built
