"""Popularity says what the sampler then draws."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.routing.loads import make_bank
from moesim.specs.catalog import get_model
from moesim.specs.routing import parse_routing


@pytest.mark.parametrize("model", ["deepseek-v3", "kimi-k2", "qwen3-30b-a3b", "mixtral-8x7b"])
def test_identical_tokens_touch_exactly_top_k_experts(model: str) -> None:
    """Also where only the experts of some groups can be chosen together (DeepSeek-V3: 4 of 8 groups)."""
    moe = get_model(model).moe
    assert moe is not None
    bank = make_bank(moe, parse_routing("identical"), num_layers=16, seed=3)
    hot = bank.inclusion > 0
    assert (hot.sum(axis=1) == moe.top_k).all()
    assert (bank.inclusion[hot] == 1).all()
    assert len(np.unique(hot, axis=0)) > 1, "layers have hot experts of their own"
