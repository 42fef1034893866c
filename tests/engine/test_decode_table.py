"""The tabulated decode attention against the function it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.costs.attention import AttentionCoefficients, attention_coefficients
from moesim.costs.layout import make_layout
from moesim.engine.decode_table import DecodeTable
from tests.scenarios import scenario


def coefficients(model: str, hardware: str) -> AttentionCoefficients:
    built = scenario(model, hardware, gpus=8)
    return attention_coefficients(
        make_layout(built.model, built.deployment, built.cluster, built.parameters, built.routing, 0)
    )


CASES = {
    (model, card): coefficients(model, card)
    for model in ("mixtral-8x7b", "deepseek-v3", "gpt-oss-120b")
    for card in ("h200", "mi300x")
}


@settings(max_examples=120, deadline=None)
@given(
    case=st.sampled_from(sorted(CASES)),
    sequences=st.integers(1, 512),
    mean=st.integers(1, 40_000),
    steps=st.integers(1, 300),
)
def test_table_follows_the_function_and_both_forms_agree(case, sequences: int, mean: int, steps: int):
    attention = CASES[case]
    table = DecodeTable(attention, sequences)
    context = sequences * mean
    few = np.array(table.few_steps_s(context, steps, 1e-3))
    np.testing.assert_allclose(table.steps_s(context, steps, 1e-3), few, rtol=1e-12)
    exact = attention.decode_steps_s(sequences, context + sequences * np.arange(steps, dtype=float)) + 1e-3
    np.testing.assert_allclose(few, exact, rtol=0.08)
    assert few.mean() == pytest.approx(exact.mean(), rel=0.02)
    assert (np.diff(few) >= -1e-15).all()
