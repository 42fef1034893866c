"""Forwards of masked-diffusion models: which program runs them, and which experts a text under construction touches."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from moesim.costs.denoising import PROGRAMS, HostCalls
from moesim.costs.forward import forward_shapes, host_seconds
from moesim.engine.diffusion import run_diffusion
from moesim.errors import InputError
from moesim.specs.parameters import scaled
from moesim.specs.scenario import DiffusionRun
from tests.scenarios import scenario

MOE = {"model": "llada-moe-7b", "hardware": "h200", "input_len": 60, "num_prompts": 1, "concurrency": 1}
RUN = {"generation_len": 128, "steps": 64, "block_len": 32}


def test_every_kind_of_call_costs_host_time():
    least = HostCalls(operators=1, small=1).weight
    for more in ({"modules": 1}, {"waits": 1}, {"triton": 1}):
        assert HostCalls(operators=1, small=1, **more).weight > least


def test_the_published_code_asks_more_of_the_host():
    for execution in ("loop", "grouped"):
        ours, theirs = PROGRAMS["moesim", execution], PROGRAMS["reference", execution]
        assert ours.dense.weight < theirs.dense.weight
        assert ours.sparse.weight < theirs.sparse.weight
    logs = [run_diffusion(scenario(**MOE, **RUN, engine_version=code)) for code in ("moesim", "reference")]
    ours, theirs = (host_seconds(log.layout, log.settings) for log in logs)
    assert ours < theirs


def test_the_program_is_that_of_the_constants_unless_told():
    codes = [scenario(**{**MOE, "hardware": name}, **RUN).diffusion.code for name in ("h200", "a100-40gb", "h100")]
    assert codes == ["moesim", "reference", "moesim"]
    with pytest.raises(InputError, match=r"engine_version: unknown '0\.23'; known: moesim, reference"):
        scenario(**MOE, **RUN, engine_version="0.23")


def test_only_the_published_code_makes_logits_of_the_whole_text():
    shapes = [
        forward_shapes(DiffusionRun(**RUN, code=code), 60, block_causal=False) for code in ("moesim", "reference")
    ]
    assert [found[0].sampled for found in shapes] == [32, 128]


@pytest.mark.parametrize(("cache", "written"), [("none", 128), ("prefix", 128 - 32), ("dual", 32)])
def test_positions_of_the_text_that_a_later_forward_computes(cache, written):
    shapes = forward_shapes(DiffusionRun(**RUN, cache=cache), 60, block_causal=False)
    assert shapes[16].written == 128
    assert shapes[17].written == written


def test_masks_touch_few_experts_where_no_prompt_is_computed():
    """A prompt of 60 tokens reaches every expert anyway."""
    times = {}
    for cache in ("none", "dual"):
        for factor in (0.5, 1.0):
            case = scenario(**MOE, **RUN, cache=cache)
            alike = scaled(case.parameters, "prompt_routing_exponent", factor)
            log = run_diffusion(msgspec.structs.replace(case, parameters=alike))
            times[cache, factor] = log.generation(1, 60).operators["routed experts"].seconds
    assert np.allclose(times["none", 0.5], times["none", 1.0])
    assert times["dual", 0.5][1] < 0.9 * times["dual", 1.0][1]
    assert times["dual", 1.0][1] < times["none", 1.0][1]
