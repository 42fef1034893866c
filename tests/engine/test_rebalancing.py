"""Balancing at run time: the same answer step by step, what it gains, what it costs, and what drift takes away."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from moesim.engine.serving import ServingRun, run_serving
from moesim.errors import InputError
from moesim.metrics.summary import summarize
from moesim.specs.deployment import Eplb
from moesim.specs.scenario import Scenario
from tests.scenarios import scenario

QUICK = Eplb(window_size=20, step_interval=40)


def built(
    eplb: Eplb | None = None, drift: int = 0, redundant: int = 0, routing: str = "zipf:0.8", **words: object
) -> Scenario:
    sizes = {"gpus": 4, "tp": 1, "dp": 4, "ep": 4, "concurrency": 256, "num_prompts": 256, "input_len": 64}
    sizes["frontend"] = "offline"
    given = {**sizes, "output_len": 300, "routing": routing, "drift_steps": drift, **words}
    return scenario("qwen3-30b-a3b", eplb=eplb, redundant_experts=redundant, **given)


def ratio(run: ServingRun) -> float:
    return run.rebalancing[0].rank_max_over_mean


@pytest.mark.parametrize("use_async", [True, False])
@pytest.mark.parametrize(("drift", "redundant"), [(0, 8), (90, 0)])
def test_macro_steps_equal_single_steps(use_async: bool, drift: int, redundant: int) -> None:
    eplb = msgspec.structs.replace(QUICK, use_async=use_async)
    case = built(eplb, drift, redundant, output_len=110, num_prompts=300, range_ratio=0.6)
    macro, single = run_serving(case), run_serving(case, macro_steps=False)
    ends = [np.array([request.last_token_s for request in run.requests]) for run in (macro, single)]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-9)
    ours, theirs = macro.rebalancing[0], single.rebalancing[0]
    assert (ours.rearrangements, ours.steps) == (theirs.rearrangements, theirs.steps)
    assert ours.rearrangements >= 2
    assert ours.ratio_steps == pytest.approx(theirs.ratio_steps, rel=1e-9)
    assert ours.added_s == pytest.approx(theirs.added_s, rel=1e-9)


def test_without_balancing_and_drift_nothing_is_added() -> None:
    assert run_serving(built()).rebalancing == []
    assert run_serving(scenario("mixtral-8x7b", gpus=2, num_prompts=8, drift_steps=50)).rebalancing == []


def test_balancing_evens_the_ranks_and_redundant_experts_even_them_further() -> None:
    static = summarize(built(), run_serving(built())).imbalance
    assert static is not None
    balanced, replicated = (run_serving(built(QUICK, redundant=extra)) for extra in (0, 32))
    assert ratio(balanced) < static.rank_max_over_mean - 0.15
    assert ratio(replicated) < static.rank_max_over_mean - 0.15
    assert balanced.elapsed_s < run_serving(built()).elapsed_s


def test_a_stop_costs_what_the_bytes_take_and_an_asynchronous_move_does_not_stop() -> None:
    moving, stopping = (
        run_serving(built(msgspec.structs.replace(QUICK, use_async=use_async))) for use_async in (True, False)
    )
    assert moving.rebalancing[0].stalled_s == 0
    stopped = stopping.rebalancing[0]
    assert stopped.stalled_s == pytest.approx(stopped.moving_s)
    assert stopped.bytes_moved > 0
    breakdown = summarize(built(), stopping).breakdown
    assert breakdown.operators["moving experts"] == pytest.approx(stopped.stalled_s)
    assert breakdown.total_s == pytest.approx(stopping.logs[0].busy_s, rel=1e-3)  # a run's mean context


def test_drift_faster_than_the_interval_takes_the_gain_away() -> None:
    rare = Eplb(window_size=40, step_interval=80)
    slow, fast = (ratio(run_serving(built(rare, drift))) for drift in (2000, 60))
    assert slow < fast - 0.05


def test_the_command_line_words_reach_the_engine() -> None:
    case = built()
    assert case.deployment.eplb is None
    words = {"enable_eplb": True, "eplb_window": 7, "eplb_interval": 9, "eplb_sync": True, "drift_steps": 30}
    case = scenario("qwen3-30b-a3b", gpus=4, tp=1, dp=4, ep=4, **words)
    assert case.deployment.eplb == Eplb(window_size=7, step_interval=9, use_async=False)
    assert case.routing.drift_steps == 30


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"gpus": 2, "enable_eplb": True}, "need expert parallelism"),
        ({"gpus": 4, "tp": 1, "dp": 4, "ep": 4, "redundant_experts": 3}, "do not fill 4 ranks evenly"),
        ({"gpus": 4, "tp": 1, "dp": 4, "ep": 4, "redundant_experts": 512}, "the most 384"),
        ({"gpus": 4, "tp": 1, "dp": 4, "ep": 4, "enable_eplb": True, "eplb_interval": 0}, "must be at least 1"),
        ({"gpus": 4, "tp": 1, "dp": 4, "ep": 4, "drift_steps": -1}, "drift_steps: -1"),
    ],
)
def test_settings_that_cannot_work_are_refused(words: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scenario("qwen3-30b-a3b", **words)
