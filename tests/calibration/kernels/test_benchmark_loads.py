"""The routing of the measured tables: sums, caps, the heaviest rank, and published figures of its skew."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.kernels.benchmark_loads import Distribution, measured_rank_loads

LAWS = (Distribution(None), Distribution(1.01), Distribution(1.2), Distribution(1.2, dealt_in_order=True))


@given(
    tokens=st.integers(1, 3000), experts=st.sampled_from([8, 16, 60, 160, 256]), top_k=st.integers(1, 8),
    law=st.sampled_from(LAWS),
)  # fmt: skip
def test_one_rank_holds_every_slot_and_no_expert_more_than_all_tokens(tokens, experts, top_k, law):
    for counts in measured_rank_loads(tokens, experts, top_k, 1, law):
        assert counts.sum() == tokens * top_k
        assert counts.min() >= 0
        if law.alpha is not None:
            assert counts.max() <= tokens


@given(tokens=st.integers(1, 2000), ranks=st.sampled_from([2, 4, 8, 64]), law=st.sampled_from(LAWS[1:]))
def test_the_measured_rank_is_the_heaviest(tokens, ranks, law):
    for counts in measured_rank_loads(tokens, 64, 6, ranks, law):
        assert len(counts) == 64 // ranks
        assert counts.sum() >= tokens * 6 / ranks - 1e-9


def gini(counts):
    ordered = np.sort(counts)
    rank = np.arange(1, len(ordered) + 1)
    return 2 * (rank * ordered).sum() / (len(ordered) * ordered.sum()) - (len(ordered) + 1) / len(ordered)


@pytest.mark.parametrize(("experts", "alpha", "expected", "peak"), [(256, 1.01, 0.71, 6.8), (256, 1.2, 0.77, 11.2)])
def test_skew_is_that_of_the_published_generator(experts, alpha, expected, peak):
    """Gini and largest over mean load at 1,024 tokens, from the reference notes on the tables."""
    draws = np.stack(measured_rank_loads(1024, experts, 8, 1, Distribution(alpha)))
    assert np.mean([gini(row) for row in draws]) == pytest.approx(expected, abs=0.03)
    assert (draws.max(axis=1) / draws.mean(axis=1)).mean() == pytest.approx(peak, rel=0.2)


def test_balanced_tokens_touch_as_many_experts_as_they_have_slots():
    (counts,) = measured_rank_loads(16, 128, 8, 1, Distribution(None))
    assert counts.tolist() == [1] * 128
    (counts,) = measured_rank_loads(1, 128, 8, 8, Distribution(None))
    assert counts.sum() == 1


def test_the_old_generator_put_a_small_batch_on_one_rank():
    old = measured_rank_loads(1, 256, 8, 8, Distribution(1.01, dealt_in_order=True))
    new = measured_rank_loads(1, 256, 8, 8, Distribution(1.01))
    assert all(counts.sum() == 8 for counts in old)
    assert np.mean([counts.sum() for counts in new]) < 3
