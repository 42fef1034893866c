"""Cached keys and values: exact where nothing changed, and spans as the two kinds define them."""

# ruff: noqa: E402 - what is imported depends on what is installed

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hw_validation.llada.cache import Span, plan_span, span_lengths
from hw_validation.llada.sampler import Denoiser
from hw_validation.llada.settings import RunSettings
from hw_validation.llada.timing import StepClock
from tests.hw_validation.llada.models import CPU, DENSE, MOE, build, grouped_query, tokens_of


def settings(**changes):
    return RunSettings(**{"prompt_len": 5, "generation_len": 12, "steps": 6, "block_len": 6, "batch": 2, **changes})


def generate(model, run):
    cache = None if run.cache == "none" else model.new_cache(run.rows, run.total_len)
    prompt = tokens_of(model.architecture, run.batch, run.prompt_len)
    return Denoiser(model, run, model.architecture.mask_token_id, cache).generate(prompt, StepClock(CPU))


def test_spans():
    none, prefix, dual = (settings(cache=kind) for kind in ("none", "prefix", "dual"))
    assert [plan_span(run, 1, 0) for run in (none, prefix, dual)] == [Span(0, 17)] * 3
    assert [plan_span(run, 1, 2) for run in (none, prefix, dual)] == [Span(0, 17), Span(11, 17), Span(11, 17)]
    assert [plan_span(run, 0, 1) for run in (none, prefix, dual)] == [Span(0, 17), Span(5, 17), Span(5, 11)]
    assert plan_span(settings(cache="dual", cache_refresh=2), 0, 2) == Span(0, 17)
    assert span_lengths(prefix) == {17, 12, 6}


@pytest.mark.parametrize("architecture", [DENSE, MOE, grouped_query(DENSE)], ids=["dense", "moe", "gqa"])
@pytest.mark.parametrize(("first", "stop"), [(0, 40), (12, 40), (12, 20)], ids=["all", "prefix", "dual"])
def test_cached_span_equals_the_whole_forward(architecture, first, stop):
    model = build(architecture)
    tokens = tokens_of(architecture, 2, 40)
    everything = torch.arange(40)
    whole = model(tokens, everything, everything)
    cache = model.new_cache(2, 40)
    model(tokens, everything, everything[:1], cache)
    rows = torch.arange(stop - first)
    part = model(tokens[:, first:stop], torch.arange(first, stop), rows, cache)
    torch.testing.assert_close(part, whole[:, first:stop], rtol=1e-4, atol=1e-4)


def test_rows_are_the_only_logits():
    model = build(MOE)
    tokens = tokens_of(MOE, 2, 20)
    positions = torch.arange(20)
    whole = model(tokens, positions, positions)
    torch.testing.assert_close(model(tokens, positions, positions[7:11]), whole[:, 7:11], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_refreshed_every_step_equals_no_cache(kind, cfg_scale):
    model = build(MOE)
    expected = generate(model, settings(cfg_scale=cfg_scale))
    result = generate(model, settings(cache=kind, cache_refresh=1, cfg_scale=cfg_scale))
    assert torch.equal(result.tokens, expected.tokens)


@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_one_step_a_block_equals_no_cache(kind):
    model = build(DENSE)
    expected = generate(model, settings(steps=2))
    assert torch.equal(generate(model, settings(steps=2, cache=kind)).tokens, expected.tokens)


def test_a_stale_cache_is_used():
    model = build(DENSE)
    tokens = tokens_of(DENSE, 1, 20)
    everything, block = torch.arange(20), torch.arange(8, 12)
    cache = model.new_cache(1, 20)
    model(tokens, everything, everything[:1], cache)
    changed = tokens.clone()
    changed[:, 15] = (changed[:, 15] + 1) % DENSE.mask_token_id
    stale = model(changed[:, 8:12], block, torch.arange(4), cache)
    fresh = model(changed, everything, block)
    old = model(tokens, everything, block)
    torch.testing.assert_close(stale, old, rtol=1e-4, atol=1e-4)
    assert (stale - fresh).abs().max() > 1e-3
