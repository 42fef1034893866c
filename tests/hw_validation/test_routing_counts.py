from __future__ import annotations

import numpy as np
import pytest

from hw_validation.routing_counts import summarize_routing


def test_one_expert_takes_all() -> None:
    routed = [np.zeros((10, 3, 1), dtype=np.uint8) for _ in range(4)]
    counts = summarize_routing(routed, num_steps=5, num_experts=8)
    assert counts.values["distinct_experts_mean"] == 1
    assert counts.values["routed_max_over_mean"] == 8
    assert counts.values["routed_gini"] == pytest.approx(7 / 8)
    assert counts.values["routed_steps"] == 5
    assert len(counts.rows) == 3


def test_even_routing_has_no_imbalance() -> None:
    routed = [np.full((6, 2, 2), 2 * place) + np.arange(2) for place in range(4)]
    counts = summarize_routing(routed, num_steps=6, num_experts=8)
    assert counts.values["distinct_experts_mean"] == 8
    assert counts.values["routed_max_over_mean"] == 1
    assert counts.values["routed_gini"] == pytest.approx(0.0)


def test_uniform_draws_touch_as_many_experts_as_the_closed_form() -> None:
    draw = np.random.default_rng(1)
    experts, top_k, batch = 64, 8, 16
    routed = [draw.random((200, 2, experts)).argsort(axis=2)[:, :, :top_k] for _ in range(batch)]
    counts = summarize_routing(routed, num_steps=200, num_experts=experts)
    assert counts.values["distinct_experts_mean"] == pytest.approx(
        experts * (1 - (1 - top_k / experts) ** batch), rel=0.01
    )
    assert counts.values["routed_total_gini"] < counts.values["routed_gini"]


def test_only_the_last_steps_count() -> None:
    request = np.concatenate([np.zeros((5, 1, 1), dtype=int), np.full((3, 1, 1), 7)])
    counts = summarize_routing([request, request + 0], num_steps=3, num_experts=8)
    assert counts.values["distinct_experts_mean"] == 1
