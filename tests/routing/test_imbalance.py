"""Closed forms and invariances of the imbalance measures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moesim.routing.imbalance import (
    balancedness_mean_of_ratios,
    balancedness_ratio_of_sums,
    coefficient_of_variation,
    cold_experts,
    entropy_bits,
    gini,
    hot_experts,
    jain_index,
    max_over_mean,
)

LOADS = arrays(np.float64, st.integers(2, 40), elements=st.integers(0, 1000).map(float))
MEASURES = (gini, coefficient_of_variation, max_over_mean, jain_index, entropy_bits)


@given(LOADS, st.integers(0, 1000))
def test_measures_ignore_order_and_scale_and_stay_in_bounds(loads: np.ndarray, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(loads)
    for measure in MEASURES:
        assert measure(shuffled) == pytest.approx(measure(loads), abs=1e-12)
        assert measure(loads * 3) == pytest.approx(measure(loads), abs=1e-9)
    size = len(loads)
    assert 0 <= gini(loads) <= (size - 1) / size + 1e-12
    assert 1 / size - 1e-12 <= jain_index(loads) <= 1 + 1e-12
    assert 1 - 1e-12 <= max_over_mean(loads) <= size + 1e-12
    assert -1e-12 <= entropy_bits(loads) <= np.log2(size) + 1e-9


@given(LOADS)
def test_gini_is_the_mean_absolute_difference(loads: np.ndarray) -> None:
    if loads.sum():
        differences = np.abs(loads[:, None] - loads[None, :]).mean()
        assert gini(loads) == pytest.approx(differences / (2 * loads.mean()), abs=1e-12)


def test_extremes() -> None:
    even, one = np.full(8, 5.0), np.array([0, 0, 0, 0, 0, 0, 0, 9.0])
    assert [float(measure(even)) for measure in MEASURES] == [0, 0, 1, 1, 3]
    assert [float(measure(one)) for measure in MEASURES] == pytest.approx([7 / 8, np.sqrt(7), 8, 1 / 8, 0])
    assert (hot_experts(one), cold_experts(one)) == ([7], [0, 1, 2, 3, 4, 5, 6])
    assert (hot_experts(even), cold_experts(even)) == ([], [])


def test_the_two_definitions_of_balancedness_differ_on_busy_layers() -> None:
    """A busy even layer and an idle skewed one: vLLM weighs by tokens, SGLang by layers."""
    ranks = np.array([[1000.0, 1000.0], [2.0, 0.0]])
    assert balancedness_ratio_of_sums(ranks) == pytest.approx(1001 / 1002)
    assert balancedness_mean_of_ratios(ranks) == pytest.approx(0.75)
