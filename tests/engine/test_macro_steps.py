"""Macro-steps give the answer of step-by-step simulation."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.engine.group import StepLog, flatten
from moesim.engine.serving import ServingRun, run_serving
from moesim.specs.scenario import Scenario
from moesim.specs.workload import AllAtOnce, Arrival, ClosedLoop, OpenLoop, Workload
from tests.scenarios import scenario

ARRIVALS = st.one_of(
    st.builds(ClosedLoop, concurrency=st.integers(1, 40)),
    st.builds(OpenLoop, request_rate_per_s=st.floats(0.5, 200), burstiness=st.floats(0.3, 3)),
    st.just(AllAtOnce()),
)
LAYOUTS = st.sampled_from(
    [
        {"gpus": 2},
        {"gpus": 4, "tp": 1, "dp": 4},
        {"gpus": 4, "tp": 1, "dp": 4, "ep": 4},
        {"gpus": 4, "tp": 2, "dp": 2, "ep": 4, "enforce_eager": True},
        {"gpus": 4, "pp": 2},
        {"gpus": 2, "async_scheduling": False},
        {"gpus": 2, "max_num_seqs": 3, "max_num_batched_tokens": 64},
        {"gpus": 2, "max_num_seqs": 7, "shared_prefix_len": 40},
    ]
)


def shrink_pool(built: Scenario, tokens: int, longest: int) -> Scenario:
    """The scenario with memory for about `tokens` KV tokens, so that requests are preempted."""
    from moesim.placement.memory import plan_memory

    plan = plan_memory(built.model, built.deployment, built.cluster.accelerator)
    wanted = max(tokens, longest + 16) * plan.kv_bytes_per_token
    share = (plan.weights_bytes + plan.activation_bytes + plan.runtime_bytes + wanted) / plan.visible_bytes
    deployment = msgspec.structs.replace(built.deployment, gpu_memory_utilization=share)
    return msgspec.structs.replace(built, deployment=deployment)


@settings(max_examples=60, deadline=None)
@example(  # a prompt half done waits for the blocks of a request that has just finished
    layout={"gpus": 2, "max_num_seqs": 3, "max_num_batched_tokens": 64},
    arrival=ClosedLoop(concurrency=3),
    lengths=(78, 4),
    ratio=0.0,
    prompts=3,
    pool=240,
    seed=0,
)
@given(
    layout=LAYOUTS,
    arrival=ARRIVALS,
    lengths=st.tuples(st.integers(40, 300), st.integers(1, 80)),
    ratio=st.floats(0, 0.9),
    prompts=st.integers(1, 60),
    pool=st.one_of(st.none(), st.integers(100, 3000)),
    seed=st.integers(0, 2**16),
)
def test_macro_steps_equal_single_steps(
    layout: dict[str, int],
    arrival: Arrival,
    lengths: tuple[int, int],
    ratio: float,
    prompts: int,
    pool: int | None,
    seed: int,
) -> None:
    built = scenario(seed=seed, input_len=lengths[0], output_len=lengths[1], **layout)
    workload = msgspec.structs.replace(built.workload, arrival=arrival, num_prompts=prompts, range_ratio=ratio)
    built = msgspec.structs.replace(built, workload=workload)
    if pool is not None:
        built = shrink_pool(built, pool, int(sum(lengths) * (1 + ratio)) + 2)
    macro, single = run_serving(built), run_serving(built, macro_steps=False)
    check_same(macro, single)
    check_invariants(macro, workload)


def check_same(macro: ServingRun, single: ServingRun) -> None:
    for name in ("sent_s", "first_token_s", "last_token_s"):
        ours = np.array([getattr(request, name) for request in macro.requests])
        theirs = np.array([getattr(request, name) for request in single.requests])
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    assert macro.preemptions == single.preemptions
    assert macro.peak_kv_blocks == single.peak_kv_blocks
    for ours, theirs in zip(macro.logs, single.logs, strict=True):
        assert ours.steps == theirs.steps
        assert ours.by_size == theirs.by_size
        assert ours.busy_s == pytest.approx(theirs.busy_s, rel=1e-9)
        for rows in (StepLog.decodes, StepLog.prefills):
            totals = [weighted(rows(log)) for log in (ours, theirs)]
            np.testing.assert_allclose(totals[0], totals[1], rtol=1e-9)
        np.testing.assert_allclose(sorted(ours.durations), sorted(theirs.durations), rtol=1e-9, atol=1e-12)


def weighted(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Column sums; the last column of decode rows counts the steps that a row stands for."""
    return (rows[:, :2] * rows[:, 2:]).sum(axis=0) if rows.shape[1] == 3 else rows.sum(axis=0)


def check_invariants(run: ServingRun, workload: Workload) -> None:
    """Every request is served once, in causal order; every token is emitted once; blocks are conserved."""
    assert len(run.requests) == workload.num_prompts
    for request in run.requests:
        assert 0 <= request.sent_s < request.first_token_s <= request.last_token_s
        assert request.emitted == request.output_tokens
    _, emitting = flatten(run.logs)
    assert emitting.sum() == sum(request.output_tokens - 1 for request in run.requests)
    assert run.peak_kv_blocks <= run.total_kv_blocks
