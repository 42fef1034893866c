"""What every plan must obey, whatever the loads: bound <= optimum <= plan, conservation, distinct experts a rank."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.placement.bounds import lower_bound
from moesim.placement.plan import ALGORITHMS, PlacementRequest, make_plan
from moesim.placement.replicas import check_map, rank_loads_of, replica_counts, slot_loads
from tests.placement.cases import middle_cases, optimum, tiny_cases

FloatArray = NDArray[np.float64]
Case = tuple[FloatArray, int, int]
HEURISTICS = tuple(name for name in ALGORITHMS if name not in ("optimal", "eplb_hierarchical"))


@settings(max_examples=60, deadline=None)
@given(case=tiny_cases(), algorithm=st.sampled_from(HEURISTICS))
def test_bound_is_below_the_optimum_and_plans_are_above(case: Case, algorithm: str) -> None:
    loads, slots, ranks = case
    assume(loads.sum() > 0)
    best = optimum(loads, slots, ranks)
    mean = loads.sum() / ranks
    assert lower_bound(loads, slots, ranks) <= best * (1 + 1e-9)
    plan = make_plan(loads[None, :], PlacementRequest(num_slots=slots, num_ranks=ranks, algorithm=algorithm))
    assert plan.layers[0].max_over_mean >= best / mean * (1 - 1e-9)
    assert plan.layers[0].lower_bound_max_over_mean <= best / mean * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(case=tiny_cases())
def test_optimal_is_the_optimum_and_says_so(case: Case) -> None:
    loads, slots, ranks = case
    assume(loads.sum() > 0)
    plan = make_plan(loads[None, :], PlacementRequest(num_slots=slots, num_ranks=ranks, algorithm="optimal"))
    layer = plan.layers[0]
    assert layer.max_over_mean == pytest.approx(optimum(loads, slots, ranks) / (loads.sum() / ranks), rel=1e-9)
    assert layer.proved_optimal


@settings(max_examples=80, deadline=None)
@given(case=middle_cases(), algorithm=st.sampled_from(HEURISTICS))
def test_plans_hold_every_expert_once_a_rank_and_all_tokens(case: Case, algorithm: str) -> None:
    loads, slots, ranks = case
    assume(loads.sum() > 0)
    request = PlacementRequest(num_slots=slots, num_ranks=ranks, algorithm=algorithm)
    plan = make_plan(np.stack([loads, loads[::-1]]), request)
    check_map(plan.physical, len(loads), ranks, "test")
    assert plan.physical.shape == (2, slots)
    assert (replica_counts(plan.physical, len(loads)).sum(axis=1) == slots).all()
    carried = rank_loads_of(loads, plan.physical[0], ranks)
    assert carried.sum() == pytest.approx(loads.sum(), rel=1e-9)
    assert slot_loads(loads, plan.physical[0]).min() >= 0
    for layer in plan.layers:
        assert 1 <= layer.lower_bound_max_over_mean <= layer.max_over_mean * (1 + 1e-12)
        assert layer.gap == pytest.approx(layer.max_over_mean / layer.lower_bound_max_over_mean - 1, abs=1e-12)
        assert 0 <= layer.rank_gini < 1


@settings(max_examples=40, deadline=None)
@given(case=middle_cases())
def test_auto_is_never_worse_than_eplb(case: Case) -> None:
    loads, slots, ranks = case
    assume(loads.sum() > 0)
    found = {
        name: make_plan(loads[None, :], PlacementRequest(num_slots=slots, num_ranks=ranks, algorithm=name))
        for name in ("auto", "eplb_global")
    }
    assert found["auto"].layers[0].max_over_mean <= found["eplb_global"].layers[0].max_over_mean * (1 + 1e-12)


@settings(max_examples=40, deadline=None)
@given(case=middle_cases(), seed=st.integers(0, 1000))
def test_names_of_experts_do_not_matter(case: Case, seed: int) -> None:
    """The bound is the same for any numbering of the experts, and scales with the loads."""
    loads, slots, ranks = case
    shuffled = np.random.default_rng(seed).permutation(loads)
    bound = lower_bound(loads, slots, ranks)
    assert lower_bound(shuffled, slots, ranks) == pytest.approx(bound, rel=1e-9)
    assert lower_bound(loads * 7, slots, ranks) == pytest.approx(7 * bound, rel=1e-9)


def test_more_replicas_never_raise_the_bound() -> None:
    loads = np.random.default_rng(1).lognormal(0, 1.5, 32)
    bounds = [lower_bound(loads, slots, 8) for slots in range(32, 257, 8)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(bounds))


def test_deepseek_size_within_twenty_seconds_and_never_worse_than_eplb() -> None:
    """58 layers x 256 experts on 32 ranks with 288 replicas: CPU time, since other work may share the machine."""
    import time

    rng = np.random.default_rng(0)
    loads = rng.poisson(1e6 * _shares(rng)).astype(float)
    sizes = {"num_slots": 288, "num_ranks": 32, "num_nodes": 4, "num_groups": 8}
    began = time.process_time()
    seen: list[int] = []
    plan = make_plan(loads, PlacementRequest(**sizes), progress=lambda done, *_: seen.append(done))  # pyright: ignore[reportArgumentType]
    assert time.process_time() - began < 20
    assert seen == list(range(59))
    for policy in ("eplb_global", "eplb_hierarchical"):
        other = make_plan(loads, PlacementRequest(**sizes, algorithm=policy))  # pyright: ignore[reportArgumentType]
        pairs = zip(plan.layers, other.layers, strict=True)
        assert all(ours.max_over_mean <= theirs.max_over_mean * (1 + 1e-12) for ours, theirs in pairs)
    gaps = np.array([layer.gap for layer in plan.layers])
    assert gaps[:20].max() < 1e-3
    assert gaps[20:40].max() < 1e-3
    assert gaps.max() < 0.15


def _shares(rng: np.random.Generator) -> FloatArray:
    """Zipf 1, log-normal and 80/20 layers."""
    zipf = [rng.permutation(1 / np.arange(1, 257)) for _ in range(20)]
    normal = list(rng.lognormal(0, 1, (20, 256)))
    eighty = [rng.permutation(np.repeat([0.8 / 51, 0.2 / 205], [51, 205])) for _ in range(18)]
    shares = np.array([*zipf, *normal, *eighty])
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("slots", "ranks", "words"),
    [
        (8, 8, "8 slots cannot hold 12 experts; the smallest that works on 8 ranks is 16"),
        (17, 8, "17 is no multiple of the 8 ranks; nearest that work: 16, 24"),
        (104, 8, "the largest that works is 96"),
        (12, 0, "gpus: 0 is out of range"),
    ],
)
def test_sizes_that_cannot_work_are_refused_with_one_that_does(slots: int, ranks: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_plan(np.ones((1, 12)), PlacementRequest(num_slots=slots, num_ranks=ranks))


def test_a_layer_without_tokens_is_placed_in_order() -> None:
    plan = make_plan(np.array([[0.0, 0, 0, 0], [4, 1, 1, 1]]), PlacementRequest(num_slots=4, num_ranks=2))
    assert plan.physical[0].tolist() == [0, 1, 2, 3]
    assert plan.layers[0].max_over_mean == 1.0
