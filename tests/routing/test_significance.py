"""Chance alone: the Gini of uniform routing against simulation, and tests that reject at their level."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.routing.imbalance import gini
from moesim.routing.profile import RoutingProfile, from_choices
from moesim.routing.significance import expected_uniform_gini, layer_significance


def uniform_choices(tokens: int, experts: int, top_k: int, rng: np.random.Generator) -> np.ndarray:
    return np.argsort(rng.random((tokens, experts)), axis=1)[:, :top_k]


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 8, 2), (5, 8, 2), (40, 64, 8), (300, 60, 4), (100, 4, 3)])
def test_expected_gini_is_what_simulated_uniform_routing_shows(tokens: int, experts: int, top_k: int) -> None:
    rng = np.random.default_rng(0)
    counts = [np.bincount(uniform_choices(tokens, experts, top_k, rng).ravel(), minlength=experts) for _ in range(600)]
    drawn = gini(np.array(counts, dtype=float))
    error = 4 * drawn.std() / np.sqrt(len(drawn)) + 1e-12
    assert expected_uniform_gini(tokens, experts, top_k) == pytest.approx(drawn.mean(), abs=error)


def test_exact_sum_and_limit_agree_where_they_meet() -> None:
    exact, limit = expected_uniform_gini(200_000, 64, 8), expected_uniform_gini(200_001, 64, 8)
    assert limit == pytest.approx(exact, rel=1e-3)


def test_expected_gini_falls_with_tokens_and_is_zero_when_all_are_chosen() -> None:
    values = [expected_uniform_gini(tokens, 64, 8) for tokens in (1, 10, 100, 1000, 10_000, 1_000_000)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.003
    assert expected_uniform_gini(100, 8, 8) == 0


def test_uniform_routing_is_rejected_at_the_level_of_the_test() -> None:
    rng = np.random.default_rng(1)
    found = [
        layer_significance(from_choices(uniform_choices(400, 16, 2, rng)[:, None], 16, "t"), 0, 2, rng)
        for _ in range(200)
    ]
    assert np.mean([item.p_value < 0.1 for item in found]) == pytest.approx(0.1, abs=0.065)  # pyright: ignore[reportOptionalOperand]
    assert sum(bool(item.significant) for item in found) <= 8


def test_skew_is_found_and_the_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(2)
    shares = 1 / np.arange(1, 33) ** 0.5
    truth = float(gini(shares))
    inside = 0
    for _ in range(60):
        counts = rng.multinomial(2000, shares / shares.sum()).astype(float)
        found = layer_significance(RoutingProfile(counts=counts[None, None], source="t"), 0, 1, rng)
        assert found.significant
        inside += found.interval_90[0] <= truth <= found.interval_90[1]
    assert inside >= 45


def test_weights_have_no_sample_size() -> None:
    found = layer_significance(
        RoutingProfile(counts=np.array([[[0.25, 0.75]]]), source="t"), 0, 1, np.random.default_rng(0)
    )
    assert (found.gini_expected_uniform, found.p_value, found.significant) == (None, None, None)
