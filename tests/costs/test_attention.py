"""Attention costs obey physics: more work never costs less, and long contexts approach the achieved rates."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.costs.arithmetic import ARRAYS
from moesim.costs.attention import AttentionCoefficients, attention_coefficients
from moesim.costs.decode_attention import decode_line, decode_seconds, grouped_query_kernel, latent_kernel
from moesim.costs.layout import make_layout
from moesim.costs.prefill_attention import causal_pairs, flash_kernel, prefill_seconds
from moesim.specs.catalog import get_hardware
from moesim.specs.parameters import select_parameters
from tests.scenarios import scenario

H200 = get_hardware("h200")
CONSTANTS = select_parameters(H200)
MODELS = ("mixtral-8x7b", "olmoe-1b-7b", "gpt-oss-120b", "deepseek-v3")


def coefficients(model: str, hardware: str = "h200", **words: object) -> AttentionCoefficients:
    built = scenario(model, hardware, gpus=8, **words)
    return attention_coefficients(
        make_layout(built.model, built.deployment, built.cluster, built.parameters, built.routing, 0)
    )


def kernel(heads: float = 32, kv_heads: float = 8, head_dim: float = 128, kv_bytes: float = 2, window: float = 1e12):
    return grouped_query_kernel(H200, CONSTANTS, heads, kv_heads, head_dim, kv_bytes, window)


@settings(max_examples=60, deadline=None)
@given(
    model=st.sampled_from(MODELS),
    sequences=st.integers(1, 900),
    length=st.integers(1, 20_000),
    more=st.integers(1, 5_000),
)
def test_decode_costs_more_with_longer_contexts_and_more_sequences(model, sequences, length, more):
    found = coefficients(model)
    base = found.decode_s(sequences, sequences * length)
    assert found.decode_s(sequences, sequences * (length + more)) >= base * (1 - 1e-12)
    assert found.decode_s(sequences + 50, (sequences + 50) * length) >= base * (1 - 1e-12)


@settings(max_examples=40, deadline=None)
@given(model=st.sampled_from(MODELS), sequences=st.integers(1, 2000), length=st.integers(1, 30_000))
def test_floats_and_arrays_agree(model, sequences, length):
    found = coefficients(model)
    context = sequences * (length + np.arange(7.0))
    one_by_one = [found.decode_s(sequences, value) for value in context.tolist()]
    assert found.decode_steps_s(sequences, context) == pytest.approx(one_by_one, rel=1e-12)
    batches = sequences + np.arange(7.0)
    one_by_one = list(map(found.decode_s, batches.tolist(), context.tolist()))
    assert found.decode_rows_s(batches, context) == pytest.approx(one_by_one, rel=1e-12)


def test_a_large_batch_streams_its_cache_at_the_achieved_bandwidth():
    batch, length = 256, 16_000
    seconds = float(decode_seconds(kernel(), np.array([256.0]), np.array([256.0 * length]))[0])
    streamed = batch * length * 2 * 8 * 128 * 2 / (4.8e12 * CONSTANTS["attention_hbm_efficiency"])
    assert seconds == pytest.approx(streamed, rel=0.06)


def test_decode_of_a_long_context_is_linear():
    line = decode_line(kernel(), 64.0)
    slope = (line.seconds(64 * 20_000.0) - line.seconds(64 * 10_000.0)) / (64 * 10_000)
    assert slope == pytest.approx((line.seconds(64 * 40_000.0) - line.seconds(64 * 20_000.0)) / (64 * 20_000), rel=1e-9)


def test_query_heads_of_a_group_share_the_cache_read():
    batch, cached = np.array([128.0]), np.array([128.0 * 8000])
    grouped = decode_seconds(kernel(heads=32, kv_heads=8), batch, cached)
    separate = decode_seconds(kernel(heads=32, kv_heads=32), batch, cached)
    assert separate / grouped == pytest.approx(4, rel=0.1)


def test_one_byte_caches_are_bound_by_their_conversion():
    batch, cached = np.array([256.0]), np.array([256.0 * 30_000])
    seconds = float(decode_seconds(kernel(kv_bytes=1), batch, cached)[0])
    converted = 256 * 30_000 * 2 * 8 * 128 * CONSTANTS["decode_fp8_flops"] / 989e12
    assert seconds == pytest.approx(converted, rel=0.05)
    assert 0.5 < seconds / float(decode_seconds(kernel(), batch, cached)[0]) < 1


def test_few_sequences_do_not_fill_the_chip_without_splits():
    alone = {**{name: CONSTANTS[name] for name in CONSTANTS.parameters}, "decode_ungrouped_splits": 1.0}
    unsplit = grouped_query_kernel(H200, alone, 8, 8, 128, 2)
    length = np.array([60_000.0])
    slow = decode_seconds(unsplit, np.array([1.0]), length)
    fast = decode_seconds(kernel(heads=8, kv_heads=8), np.array([1.0]), length)
    assert slow / fast > 5
    units = 132 / 8 / CONSTANTS["decode_unit_share"] * CONSTANTS["attention_hbm_efficiency"]
    assert slow / fast == pytest.approx(units, rel=0.35)


def test_a_window_bounds_the_cost():
    line = decode_line(kernel(window=128.0), 32.0)
    assert line.seconds(32 * 129.0) == pytest.approx(line.seconds(32 * 100_000.0), rel=1e-12)
    assert line.seconds(32 * 100_000.0) < decode_line(kernel(), 32.0).seconds(32 * 1000.0)


def test_latent_attention_of_many_heads_is_bound_by_arithmetic():
    batch, cached = np.array([256.0]), np.array([256.0 * 60_000])
    kernels = [latent_kernel(H200, CONSTANTS, heads, 512, 64, 2.0) for heads in (16, 128)]
    few, many = (float(decode_seconds(item, batch, cached)[0]) for item in kernels)
    flops = 256 * 60_000 * 128 * 2 * (2 * 512 + 64)
    assert many == pytest.approx(flops / (989e12 * CONSTANTS["mla_decode_compute_efficiency"]), rel=0.1)
    streamed = 256 * 60_000 * 1152 / (4.8e12 * CONSTANTS["mla_hbm_efficiency"])
    assert streamed < few < 1.25 * streamed


@settings(max_examples=60, deadline=None)
@given(model=st.sampled_from(MODELS), tokens=st.integers(1, 8000), start=st.integers(0, 8000), more=st.integers(1, 500))
def test_prefill_costs_more_with_more_keys(model, tokens, start, more):
    found = coefficients(model)

    def seconds(before: int) -> float:
        pairs = tokens * before + tokens * (tokens + 1) / 2
        return found.prefill_s(1, tokens, pairs, min(pairs, tokens * found.window), before + tokens)

    assert seconds(start + more) >= seconds(start) * (1 - 1e-12)


def test_a_long_prompt_approaches_the_achieved_rate():
    shape = flash_kernel(H200, CONSTANTS, 64, 8, 128, 2)
    tokens = np.array([16_384.0])
    pairs = causal_pairs(tokens)
    seconds = float(prefill_seconds(shape, np.array([4.0]), 4 * tokens, 4 * pairs, 4 * tokens, ARRAYS)[0])
    flops = 4 * float(pairs[0]) * 64 * (4 * 128 + CONSTANTS["prefill_softmax_flops"])
    assert seconds == pytest.approx(flops / (989e12 * CONSTANTS["attention_compute_efficiency"]), rel=0.08)


def test_two_halves_of_a_prompt_compute_its_pairs():
    shape = flash_kernel(H200, CONSTANTS, 32, 8, 128, 2)
    whole = prefill_seconds(shape, 1, 8192, 8192 * 8193 / 2, 8192)
    first = prefill_seconds(shape, 1, 4096, 4096 * 4097 / 2, 4096)
    second = prefill_seconds(shape, 1, 4096, 4096 * 4096 + 4096 * 4097 / 2, 8192)
    assert whole < first + second < 1.2 * whole


def test_nothing_to_do_costs_nothing():
    found = coefficients("gpt-oss-120b")
    assert found.decode_s(0, 0) == 0
    assert found.prefill_s(0, 0, 0, 0, 0) == 0


@pytest.mark.parametrize("hardware", ["a100-80gb", "h100", "b200", "mi300x"])
def test_faster_memory_is_never_slower(hardware):
    accelerator = get_hardware(hardware)
    constants = select_parameters(accelerator)
    faster = msgspec.structs.replace(accelerator, hbm_bandwidth_bytes_per_s=2 * accelerator.hbm_bandwidth_bytes_per_s)
    batch, length = np.meshgrid([1.0, 16.0, 200.0], [10.0, 1000.0, 50_000.0])
    slow, fast = (
        decode_seconds(grouped_query_kernel(item, constants, 32, 8, 128, 2), batch, batch * length)
        for item in (accelerator, faster)
    )
    assert (fast <= slow).all()
    assert fast.min() > 0
