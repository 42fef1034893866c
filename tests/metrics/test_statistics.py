"""Percentiles and means against numpy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.metrics.statistics import spread, weighted_spread

VALUES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=60)


@given(VALUES)
def test_spread_is_numpys(values: list[float]):
    array = np.array(values)
    found = spread(array)
    assert found
    assert found.mean == pytest.approx(array.mean())
    assert (found.p50, found.p90, found.p99) == pytest.approx(tuple(np.percentile(array, (50, 90, 99))))
    assert found.p50 <= found.p90 <= found.p99


@given(st.lists(st.tuples(st.floats(0.001, 1e6), st.integers(1, 9)), min_size=1, max_size=30))
def test_weights_count_like_repeats(pairs: list[tuple[float, int]]):
    values, weights = (np.array(column) for column in zip(*pairs, strict=True))
    found = weighted_spread(values, weights)
    repeated = np.repeat(values, weights)
    assert found
    assert found.mean == pytest.approx(repeated.mean())
    for share, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert value == pytest.approx(np.percentile(repeated, share, method="inverted_cdf"))


def test_nothing_has_no_spread():
    assert spread(np.empty(0)) is None
    assert weighted_spread(np.empty(0), np.empty(0)) is None
    assert weighted_spread(np.ones(2), np.zeros(2)) is None
