"""EPLB's published example, plan by plan."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement.eplb import eplb_hierarchical
from moesim.placement.plan import PlacementRequest, make_plan
from moesim.placement.replicas import check_map
from tests.placement.cases import EPLB_EXAMPLE


def ratios(algorithm: str, **words: object) -> list[float]:
    request = PlacementRequest(
        num_slots=16,
        num_ranks=8,
        num_nodes=2,
        num_groups=4,
        algorithm=algorithm,
        **words,  # pyright: ignore[reportArgumentType]
    )
    plan = make_plan(EPLB_EXAMPLE, request)
    check_map(plan.physical, 12, 8, "test")
    return [layer.max_over_mean for layer in plan.layers]


def test_hierarchical_policy_gives_the_published_map() -> None:
    maps = [eplb_hierarchical(row, 16, 8, 4, 2) for row in EPLB_EXAMPLE]
    published = [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert np.array_equal(maps, published)


def test_policies_give_the_published_ratios() -> None:
    assert ratios("eplb_hierarchical") == pytest.approx([1.208, 1.242], abs=5e-4)
    assert ratios("eplb_global") == pytest.approx([1.073, 1.190], abs=5e-4)


def test_optimum_is_proved_within_fifteen_seconds() -> None:
    began = time.perf_counter()
    plan = make_plan(EPLB_EXAMPLE, PlacementRequest(num_slots=16, num_ranks=8, algorithm="optimal"))
    assert time.perf_counter() - began < 15
    assert [layer.max_over_mean for layer in plan.layers] == pytest.approx([1.053, 1.190], abs=5e-4)
    assert all(layer.proved_optimal and layer.gap < 1e-9 for layer in plan.layers)


def test_the_global_policy_never_repeats_an_expert_on_a_rank() -> None:
    """Packing by load alone would put both replicas of expert 1 on one rank in the first layer of the example."""
    for seed in range(40):
        loads = np.random.default_rng(seed).lognormal(0, 2, (1, 16))
        plan = make_plan(loads, PlacementRequest(num_slots=32, num_ranks=8, algorithm="eplb_global"))
        check_map(plan.physical, 16, 8, "test")


@pytest.mark.parametrize(
    ("groups", "nodes", "words"),
    [
        (5, 1, "does not divide the 12 experts"),
        (3, 2, "do not spread evenly over 2 nodes"),
        (4, 3, "does not divide the 8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(groups: int, nodes: int, words: str) -> None:
    request = PlacementRequest(
        num_slots=16, num_ranks=8, num_nodes=nodes, num_groups=groups, algorithm="eplb_hierarchical"
    )
    with pytest.raises(InputError, match=words):
        make_plan(EPLB_EXAMPLE, request)
