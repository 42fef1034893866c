"""Results add up: operators to busy time, shares to one, rates to counts, intervals around their values."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moesim.engine.serving import run_serving
from moesim.metrics.breakdown import run_breakdown
from moesim.metrics.summary import summarize
from moesim.simulation import simulate_scenario
from moesim.specs.parameters import ParameterSet
from tests.scenarios import scenario


@settings(max_examples=25, deadline=None)
@example(case=("dbrx", "a100-80gb", {"tp": 8, "enforce_eager": True}), concurrency=10, lengths=(688, 1))
@given(
    case=st.sampled_from(
        [
            ("mixtral-8x7b", "h200", {"tp": 8}),
            ("mixtral-8x7b", "mi300x", {"tp": 1, "dp": 8, "ep": 8}),
            ("deepseek-v3", "h200", {"tp": 2, "dp": 4, "ep": 8}),
            ("gpt-oss-120b", "b200", {"tp": 1, "dp": 8}),
            ("dbrx", "a100-80gb", {"tp": 8, "enforce_eager": True}),
        ]
    ),
    concurrency=st.integers(1, 64),
    lengths=st.tuples(st.integers(1, 900), st.integers(1, 60)),
)
def test_a_run_adds_up(case: tuple[str, str, dict[str, object]], concurrency: int, lengths: tuple[int, int]):
    model, hardware, sizes = case
    built = scenario(
        model, hardware, gpus=8, concurrency=concurrency, num_prompts=64, input_len=lengths[0], output_len=lengths[1],
        **sizes,
    )  # fmt: skip
    run = run_serving(built)
    result = summarize(built, run)
    busy = sum(log.busy_s for log in run.logs)
    breakdown = result.breakdown
    assert breakdown.total_s == pytest.approx(busy, rel=0.03)
    assert sum(breakdown.limits.values()) == pytest.approx(breakdown.total_s, rel=1e-6)
    assert min(breakdown.limits.values()) >= 0
    assert result.output_tokens_per_s == pytest.approx(64 * lengths[1] / result.duration_s)
    assert result.total_tokens_per_s == pytest.approx(64 * sum(lengths) / result.duration_s)
    assert result.output_tokens_per_s_per_gpu == pytest.approx(result.output_tokens_per_s / 8)
    use = result.utilization
    assert 0 < use.hbm_bandwidth <= 1
    assert 0 <= use.flops <= 1
    assert 0 <= use.network_time <= use.gpu_busy <= 1 + 1e-6
    assert 0 <= result.peak_kv_share <= 1
    assert result.mean_running <= concurrency + 1e-6


def test_breakdown_names_the_operators_of_the_model():
    run = run_serving(scenario("deepseek-v3", "h200", gpus=8, tp=1, dp=8, ep=8, concurrency=16, num_prompts=32))
    names = set(run_breakdown(run.model, run.logs).operators)
    assert {"attention", "attention projections", "routed experts", "shared experts", "expert exchange"} <= names
    assert "tensor-parallel all-reduce" not in names


def test_imbalance_of_extremes():
    loads = [
        simulate_scenario(
            scenario("qwen3-235b-a22b", "h200", gpus=8, concurrency=64, num_prompts=64, routing=word), intervals=False
        ).imbalance
        for word in ("uniform", "zipf:1.2", "identical")
    ]
    even, skewed, same = loads
    assert even and skewed and same
    assert even.gini < skewed.gini < same.gini
    assert even.max_over_mean < skewed.max_over_mean < same.max_over_mean
    assert same.distinct_experts == 8
    assert same.max_over_mean == pytest.approx(128 / 8)
    assert skewed.distinct_experts < even.distinct_experts


def test_skew_costs_expert_parallel_ranks():
    words = {"gpus": 8, "tp": 1, "dp": 8, "ep": 8, "concurrency": 512, "num_prompts": 1024, "output_len": 32}
    even = simulate_scenario(scenario("deepseek-v3", "h200", **words))
    skewed = simulate_scenario(scenario("deepseek-v3", "h200", **words, routing="zipf:1.2"))
    assert even.imbalance and skewed.imbalance
    assert skewed.imbalance.rank_max_over_mean > even.imbalance.rank_max_over_mean
    assert skewed.output_tokens_per_s < even.output_tokens_per_s


@pytest.mark.parametrize("model", ["mixtral-8x7b", "llada-moe-7b"])
def test_intervals_hold_their_value(model: str):
    result = simulate_scenario(scenario(model, "h200", gpus=2, num_prompts=8))
    assert set(result.interval_90) == {"output_tokens_per_s", "ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"}
    for name, (low, high) in result.interval_90.items():
        value = getattr(result, name)
        value = value if isinstance(value, float) else value.mean
        assert 0 < low < value < high


def widened(parameters: ParameterSet, factor: float) -> ParameterSet:
    constants = {
        name: msgspec.structs.replace(item, log_sd=item.log_sd * factor) for name, item in parameters.parameters.items()
    }
    return msgspec.structs.replace(parameters, parameters=constants)


def test_doubtful_constants_widen_the_interval():
    built = scenario(gpus=2, num_prompts=8, parameters="prior-nvidia")
    doubtful = msgspec.structs.replace(built, parameters=widened(built.parameters, 2.0))
    narrow, wide = (simulate_scenario(item).interval_90["tpot_ms"] for item in (built, doubtful))
    assert wide[1] / wide[0] > narrow[1] / narrow[0]
