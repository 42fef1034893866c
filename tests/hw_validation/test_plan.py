from __future__ import annotations

import msgspec
import pytest

from hw_validation.plan import (
    BATCHES,
    SECTIONS,
    ClosedLoopPoint,
    DecodePoint,
    Limits,
    MixedPoint,
    PrefillPoint,
    decode_tokens,
    fitting_context,
    plan_points,
)
from moesim.errors import InputError
from tests.hw_validation.fakes import LIMITS

ROOMY = msgspec.structs.replace(LIMITS, kv_cache_tokens=10_000_000)


def test_every_point_has_its_own_key() -> None:
    keys = [point.key for point in plan_points(list(SECTIONS), [256, 2048], ROOMY)]
    assert len(keys) == len(set(keys))


def test_decode_covers_all_batches_at_every_context() -> None:
    points = plan_points(["decode", "decode-long"], [256, 2048], ROOMY)
    found = {(point.batch_size, point.context_len) for point in points if isinstance(point, DecodePoint)}
    assert found == {(batch, context) for batch in BATCHES for context in (256, 2048)}


@pytest.mark.parametrize("cache_tokens", [2_000, 30_000, 290_000])
def test_decode_points_stay_inside_the_cache(cache_tokens: int) -> None:
    limits = msgspec.structs.replace(LIMITS, kv_cache_tokens=cache_tokens)
    for point in plan_points(["decode", "decode-long", "skew"], [256, 2048], limits):
        assert isinstance(point, DecodePoint)
        longest = point.context_len + decode_tokens(point, limits)
        assert point.batch_size * longest <= cache_tokens
        assert longest < limits.max_model_len


def test_prefills_fit_one_step() -> None:
    small = msgspec.structs.replace(ROOMY, max_num_batched_tokens=1024, max_model_len=600)
    points = plan_points(["prefill"], [256], small)
    assert points
    for point in points:
        assert isinstance(point, PrefillPoint)
        assert point.num_prompts * point.prompt_len <= 1024
        assert point.prompt_len < 600


def test_mixed_points_leave_a_seat_for_the_prompt() -> None:
    limits = msgspec.structs.replace(ROOMY, max_num_seqs=64)
    sizes = {point.batch_size for point in plan_points(["mixed"], [256], limits) if isinstance(point, MixedPoint)}
    assert sizes == {16}


def test_closed_loops_end_in_whole_waves() -> None:
    for point in plan_points(["closed", "closed-long"], [256], ROOMY):
        assert isinstance(point, ClosedLoopPoint)
        assert point.num_requests % point.concurrency == 0


def test_context_shrinks_in_steps_of_64() -> None:
    limits = Limits(kv_cache_tokens=100_000, max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=4096)
    assert fitting_context(1, 2048, 80, limits) == 2048
    assert fitting_context(128, 2048, 80, limits) == 576


def test_unknown_section_is_named() -> None:
    with pytest.raises(InputError, match="unknown section 'decodes'; did you mean 'decode"):
        plan_points(["decodes"], [256], ROOMY)


def test_forced_points_say_what_is_forced_and_even_ones_are_as_before() -> None:
    forced = plan_points(["forced"], [256], ROOMY)
    described = {point.key: msgspec.to_builtins(point) for point in forced}
    assert described["prefill/8x2000/uniform"].get("router_spread", 0.0) == 0.0
    worst = described["decode/64x256/temperature1/zipf:1.2/falling"]
    assert (worst["routing"], worst["router_spread"], worst["router_falling"]) == ("zipf:1.2", 1.2, True)
    assert "decode/64x256/temperature1/zipf:1.2" in described
    even = plan_points(["decode"], [256], ROOMY)[0]
    assert even.key == "decode/1x256/temperature1/spread0"
    assert "routing" not in msgspec.to_builtins(even)
