"""A loop's own steps tell whether it was disturbed."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.readers.measured import split_runs
from calibration.readers.steadiness import flaws_of, stalled_s
from calibration.schema import Measurement

PROMPT_MS, DECODE_MS = 80.0, 7.0


def loop(gpu_ms=None, concurrency=32, **values):
    """Two prompts steps and a mixed one, each 16 prompts of 1,024 tokens, among forty decode steps."""
    prompts = [(16384.0, 0.0, 0.0), (16368.0, 16.0, 16400.0), (15360.0, 17.0, 17500.0)]
    rows = [*prompts, *[(0.0, 32.0, 32768.0 + 32 * step) for step in range(40)]]
    times = [PROMPT_MS, PROMPT_MS + 3, PROMPT_MS + 2, *[DECODE_MS] * 40]
    for step, changed in (gpu_ms or {}).items():
        times[step] = changed
    columns = dict(
        zip(("prefill_tokens", "decodes", "context_tokens"), map(list, zip(*rows, strict=True)), strict=True)
    )
    return Measurement(
        id="loop",
        kind="offline",
        model="olmoe-1b-7b",
        request={"concurrency": concurrency, "frontend": "offline", "hardware": "h200", "model": "olmoe-1b-7b"},
        values={"duration_s": sum(times) / 1e3, "output_tokens_per_s": 100.0, **values},
        steps={**columns, "prefill_pairs": [512.0 * item for item in columns["prefill_tokens"]], "gpu_ms": times},
    )


def test_a_step_that_outlasts_those_with_no_less_work_stalled():
    item = loop({2: 900.0})
    assert flaws_of(item) == ("ttft_stall",)
    assert stalled_s(item) == pytest.approx((900 - PROMPT_MS - DECODE_MS) / 1e3)


@given(slower=st.floats(1.0, 1.9))
def test_a_slow_machine_is_no_stall(slower):
    assert flaws_of(loop({step: time * slower for step, time in enumerate([PROMPT_MS, PROMPT_MS + 3])})) == ()


def test_the_largest_step_has_nothing_to_be_compared_with():
    assert flaws_of(loop({0: 900.0})) == ()


@pytest.mark.parametrize(
    ("concurrency", "median_ms", "flaws"),
    [(1, 2.3, ("noisy_host",)), (1, 1.7, ()), (16, 2.3, ()), (2, 2.3, ("noisy_host",))],
)
def test_gaps_of_one_or_two_callers_are_alike_unless_the_host_was_disturbed(concurrency, median_ms, flaws):
    assert flaws_of(loop(concurrency=concurrency, itl_median_ms=median_ms, itl_p10_ms=1.66)) == flaws


def test_gaps_that_a_client_saw_through_a_server_tell_nothing_of_the_engine():
    item = loop(concurrency=1, itl_median_ms=2.3, itl_p10_ms=1.66)
    served = msgspec.structs.replace(item, request=item.request | {"frontend": "server"})
    assert flaws_of(served) == flaws_of(msgspec.structs.replace(item, steps={})) == ()


def test_a_disturbed_loop_is_still_read_with_its_flaw():
    ((run,), skipped) = split_runs([loop({2: 900.0})])
    assert run.flags == ("ttft_stall",)
    assert not skipped
