"""A plan is judged on what it was not made from."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement.judging import hold_out
from moesim.placement.plan import PlacementRequest
from moesim.routing.profile import RoutingProfile

REQUEST = PlacementRequest(num_slots=32, num_ranks=8)


def profile(drift: bool, seed: int = 0) -> RoutingProfile:
    """40 steps of skewed counts; with drift the hot experts of the second half are others."""
    rng = np.random.default_rng(seed)
    first, second = (rng.permutation(np.arange(1, 33) ** -0.5) for _ in range(2))
    shares = np.array([second if drift and step >= 20 else first for step in range(40)])
    return RoutingProfile(counts=rng.poisson(shares[:, None, :] * 4000).astype(float), source="test")


def test_a_stable_load_keeps_the_gain_and_a_drifting_one_loses_it() -> None:
    stable, drifting = hold_out(profile(False), REQUEST, 0.5), hold_out(profile(True), REQUEST, 0.5)
    assert stable is not None
    assert drifting is not None
    assert stable.gain_kept == pytest.approx(1.0, abs=0.05)
    assert drifting.judged.mean() > stable.judged.mean() + 0.15
    assert drifting.planned.mean() == pytest.approx(stable.planned.mean(), abs=0.01)


def test_no_time_no_judgement_and_bad_shares_are_refused() -> None:
    whole = profile(False)
    single = RoutingProfile(counts=whole.counts.sum(axis=0, keepdims=True), source="test")
    assert hold_out(single, REQUEST, 0.5) is None
    for share in (0.0, 1.0, 0.001):
        with pytest.raises(InputError, match="hold_out"):
            hold_out(whole, REQUEST, share)
