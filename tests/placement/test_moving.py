"""Traffic, affinity, moving from one map to the next, and the engines' file formats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.placement.affinity import cluster_affine
from moesim.placement.baselines import linear, round_robin
from moesim.placement.exchange import export_plan, read_map
from moesim.placement.migration import migrate
from moesim.placement.plan import PlacementRequest, make_plan
from moesim.placement.replicas import presence, rank_loads_of
from moesim.placement.traffic import expected_traffic, recorded_traffic
from moesim.routing.coactivation import coactivation
from moesim.routing.profile import from_choices


def choices_of(tokens: int, experts: int, top_k: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k]


def test_traffic_by_hand() -> None:
    """Four tokens on two ranks, experts 0 and 1 on rank 0: a token sends one copy to each rank that it needs."""
    chosen = np.array([[0, 1], [0, 1], [0, 2], [2, 3]])
    traffic = recorded_traffic(chosen, np.array([0, 1, 2, 3]), 4, 2, 2)
    assert traffic.matrix.tolist() == [[2, 1], [1, 1]]
    assert traffic.copies_per_token == 0.5
    assert traffic.node_copies_per_token == 0.5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), ranks=st.sampled_from([2, 4, 8]), extra=st.sampled_from([0, 8, 16]))
def test_copies_lie_between_one_and_top_k(seed: int, ranks: int, extra: int) -> None:
    chosen = choices_of(200, 16, 4, seed)
    physical = linear(16, 16 + extra, ranks)
    traffic = recorded_traffic(chosen, physical, 16, ranks, 1)
    assert 200 <= traffic.matrix.sum() <= 200 * min(4, ranks)


def test_expected_traffic_meets_recorded_traffic_of_independent_choices() -> None:
    chosen = choices_of(20_000, 32, 4)
    loads = np.bincount(chosen.ravel(), minlength=32).astype(float)
    physical = linear(32, 32, 8)
    recorded = recorded_traffic(chosen, physical, 32, 8, 2)
    expected = expected_traffic(loads, physical, 8, 2, 4)
    assert expected.copies_per_token == pytest.approx(recorded.copies_per_token, rel=0.05)
    assert expected_traffic(loads, physical, 8, 2, None).matrix.sum() == pytest.approx(80_000)


def test_affinity_brings_partners_together_without_unbalancing() -> None:
    """Experts are chosen in fixed pairs that a linear map tears apart: all copies but one a pair can be saved."""
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 16, 4000)
    chosen = np.stack([pair, pair + 16], axis=1)
    profile = from_choices(chosen[:, None, :], 32, "test")
    loads = profile.totals[0]
    pairs = coactivation(profile)
    assert pairs is not None
    start = linear(32, 32, 8)
    plan = cluster_affine(loads, start, 8, 1, pairs[0], 0.05)
    before, after = (recorded_traffic(chosen, row, 32, 8, 1) for row in (start, plan))
    assert before.copies_per_token == pytest.approx(2 * 7 / 8, rel=0.05)
    assert after.copies_per_token == pytest.approx(7 / 8, rel=0.05)
    top = [rank_loads_of(loads, row, 8).max() for row in (start, plan)]
    assert top[1] <= top[0] * 1.05 * (1 + 1e-9)


def test_affinity_algorithm_says_when_it_has_no_choices_to_go_by() -> None:
    plan = make_plan(np.arange(1.0, 17.0)[None, :], PlacementRequest(num_slots=16, num_ranks=4, algorithm="affinity"))
    assert "taken as independent" in plan.notes[0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), nodes=st.sampled_from([1, 2]), extra=st.sampled_from([0, 8]))
def test_migration_ends_at_the_plan_and_moves_no_more_than_needed(seed: int, nodes: int, extra: int) -> None:
    rng = np.random.default_rng(seed)
    loads = rng.lognormal(0, 1, (2, 16))
    slots = 16 + extra
    planned = make_plan(loads, PlacementRequest(num_slots=slots, num_ranks=4, algorithm="eplb_global")).physical
    current = np.stack([linear(16, slots, 4), round_robin(16, slots, 4)])
    moved = migrate(current, planned, 16, 4, nodes)
    for layer in range(2):
        ours, theirs = (presence(row[layer], 16, 4) for row in (moved.physical, planned))
        assert sorted(map(tuple, ours)) == sorted(map(tuple, theirs))
        here = presence(current[layer], 16, 4)
        naive = int((theirs & ~here).sum())
        assert (ours & ~here).sum() <= naive or nodes > 1
    inside, across = moved.traffic()
    assert max(inside.sum(), across.sum()) <= 2 * moved.replicas_moved
    assert migrate(planned, planned, 16, 4, nodes).replicas_moved == 0


def test_a_plan_that_only_renumbers_ranks_moves_nothing() -> None:
    current = np.arange(16)[None, :]
    planned = np.arange(16).reshape(4, 4)[[2, 0, 3, 1]].reshape(1, 16)
    assert migrate(current, planned, 16, 4, 1).replicas_moved == 0
    assert migrate(current, planned, 16, 4, 2).replicas_moved > 0  # ranks of one node stay in one node


def test_maps_survive_export_and_import(tmp_path: Path) -> None:
    loads = np.random.default_rng(0).lognormal(0, 1, (3, 16))
    physical = make_plan(loads, PlacementRequest(num_slots=24, num_ranks=4)).physical
    for form in ("sglang", "json"):
        path = tmp_path / f"{form}.json"
        path.write_text(export_plan(physical, loads, 4, form))
        assert np.array_equal(read_map(path, 16, 4, 3), physical)
    assert json.loads(export_plan(physical, loads, 4, "sglang_counts"))["logical_count"] == loads.tolist()


def test_vllm_flags_name_what_vllm_can_be_told() -> None:
    loads = np.ones((2, 16))
    dealt = np.tile(round_robin(16, 16, 4), (2, 1))
    assert export_plan(dealt, loads, 4, "vllm") == "--enable-expert-parallel --expert-placement-strategy round_robin"
    flags = export_plan(np.tile(linear(16, 24, 4), (2, 1)), loads, 4, "vllm")
    assert '"num_redundant_experts": 8' in flags
    assert "--enable-eplb" in flags


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"physical_to_logical_map": [[0, 1, 2, 2]]}', "no replica of expert 3"),
        ('{"physical_to_logical_map": [[0, 0, 1, 2, 3, 1]]}', "rank 0 holds expert 0 twice"),
        ('{"physical_to_logical_map": [[0, 1, 2, 4]]}', "holds expert 4, must be 0 to 3"),
        ('{"physical_to_logical_map": [[0, 1, 2, 3], [0, 1]]}', "rows of different lengths"),
        ('{"physical_to_logical_map": [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]}', "has 3 layers, the counts have 2"),
        ('{"physical_to_logical_maps": [[0]]}', "did you mean 'physical_to_logical_maps'"),
        ("[[0.5, 1, 2, 3]]", "must hold whole numbers"),
        ("{", "not valid JSON"),
    ],
)
def test_bad_maps_are_refused(tmp_path: Path, document: str, words: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(document)
    with pytest.raises(InputError, match=words):
        read_map(path, 4, 2, 2)
