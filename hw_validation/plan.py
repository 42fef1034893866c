"""The points of a sweep, in the order in which they are worth most: what a time budget cuts off matters least."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from moesim.errors import InputError, nearest

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SPOT_BATCHES = (1, 8, 16, 64, 256)
ROUTING_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ROUTING_SPREADS = (0.0, 0.5, 1.0)
PREFILLS = (
    (1, 16),
    (1, 64),
    (1, 128),
    (1, 256),
    (1, 512),
    (1, 768),
    (1, 1024),
    (1, 2048),
    (1, 3840),
    (16, 128),
    (2, 2048),
    (4, 2048),
    (8, 2000),
)
MIXED_DECODES = (16, 64, 192)
MIXED_PREFILLS = (64, 256, 512, 2048)
MIXED_CONTEXT = 256
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SPOT_CONCURRENCIES = (1, 4, 16, 64, 256)
MIXES = ((256, 128), (1024, 64))
OPEN_LOADS = (0.3, 0.6, 0.8)
WARM_STEPS = 3
ROUTER_SPREAD = 1.0
PARALLEL_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RANK_SPREADS = (0.0, 0.3, 1.0)
RANK_BATCHES = (16, 64, 256)
RANK_PREFILLS = (512, 2048, 3840)
FORCED_ZIPFS = (0.0, 1.2, 0.6, 0.3)
FORCED_BATCHES = (64, 256)
FORCED_PREFILL = (8, 2000)
PARALLEL_CONCURRENCIES = (64, 8, 256)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What the running engine can hold: KV cache tokens, sequences and tokens a step, tokens a sequence."""

    kv_cache_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


class DecodePoint(msgspec.Struct, frozen=True, kw_only=True):
    """`batch_size` sequences of about `context_len` tokens decode `num_steps` steps together.

    On data-parallel replicas each decodes as many. `router_spread` is the log-normal spread of the router's row
    lengths (0: even routing) and `router_falling` says that the longest come first, so that the first ranks hold
    the popular experts (`hw_validation.dummy_weights`). Where `routing` is given ("uniform", "zipf:EXPONENT"), it is
    forced whatever the routers say (`hw_validation.forced_routing`), and `router_spread` repeats the exponent.
    """

    batch_size: int
    context_len: int
    num_steps: int
    temperature: float = 1.0
    router_spread: float = 0.0
    router_falling: bool = False
    routing: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def key(self) -> str:
        """Name of the point within one sweep."""
        name = f"decode/{self.batch_size}x{self.context_len}/temperature{self.temperature:g}"
        return name + (_routing_key(self) or "/spread0")


class PrefillPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`num_prompts` prompts of `prompt_len` tokens enter an idle engine in one step; `repeats` are measured."""

    num_prompts: int
    prompt_len: int
    repeats: int
    router_spread: float = 0.0
    router_falling: bool = False
    routing: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def key(self) -> str:
        """Name of the point within one sweep."""
        return f"prefill/{self.num_prompts}x{self.prompt_len}{_routing_key(self)}"


def _routing_key(point: DecodePoint | PrefillPoint | ClosedLoopPoint) -> str:
    falling = "/falling" if point.router_falling else ""
    if isinstance(point.routing, str):
        return f"/{point.routing}{falling}"
    return f"/spread{point.router_spread:g}{falling}" if point.router_spread else ""


class MixedPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt of `prefill_tokens` joins `batch_size` sequences that decode at about `context_len` tokens."""

    batch_size: int
    context_len: int
    prefill_tokens: int
    repeats: int

    @property
    def key(self) -> str:
        """Name of the point within one sweep."""
        return f"mixed/{self.batch_size}x{self.context_len}+{self.prefill_tokens}"


class ClosedLoopPoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`concurrency` clients, each sending its next request when its last one is answered."""

    concurrency: int
    input_len: int
    output_len: int
    num_requests: int
    router_spread: float = 0.0
    router_falling: bool = False
    routing: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def key(self) -> str:
        """Name of the point within one sweep."""
        return f"closed/{self.concurrency}/{self.input_len}in{self.output_len}out{_routing_key(self)}"


class OpenLoopPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Poisson arrivals at `load` times the request rate that the closed loop of 64 clients reached."""

    load: float
    input_len: int
    output_len: int
    num_requests: int

    @property
    def key(self) -> str:
        """Name of the point within one sweep."""
        return f"open/{self.load:g}/{self.input_len}in{self.output_len}out"


class KernelsPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The GPU kernels of a step: `batch_size` decodes, or one prefill of `prefill_tokens` when that is not 0."""

    batch_size: int
    context_len: int
    prefill_tokens: int = 0

    @property
    def key(self) -> str:
        """Name of the point within one sweep."""
        return f"kernels/{self.batch_size}x{self.context_len}+{self.prefill_tokens}"


Point = DecodePoint | PrefillPoint | MixedPoint | ClosedLoopPoint | OpenLoopPoint | KernelsPoint


def plan_points(sections: list[str], contexts: list[int], limits: Limits) -> list[Point]:
    """All points of `sections` (names in SECTIONS), in their order, that the engine can hold, each once.

    Raises:
        InputError: unknown section.
    """
    for name in sections:
        if name not in SECTIONS:
            raise InputError(f"unknown section {name!r}; {nearest(name, SECTIONS)}")
    points = (point for name in sections for point in SECTIONS[name](contexts, limits))
    return list({point.key: point for point in points}.values())


def fitting_context(batch_size: int, context_len: int, num_steps: int, limits: Limits) -> int:
    """The largest context up to `context_len`, in steps of 64, at which `batch_size` sequences stay in the cache."""
    room = min(0.92 * limits.kv_cache_tokens / batch_size, limits.max_model_len - 1) - num_steps
    return min(context_len, int(room) // 64 * 64)


def decode_tokens(point: DecodePoint, limits: Limits) -> int:
    """Output tokens a request needs so that all decode together for the warm and the measured steps.

    The first ones decode while the last prompts are still read, one chunk a step.
    """
    chunks = math.ceil(point.batch_size * point.context_len / limits.max_num_batched_tokens)
    return chunks + WARM_STEPS + point.num_steps + 2


def _decodes(context_len: int, limits: Limits, batches: tuple[int, ...] = BATCHES, **fields: Any) -> Iterator[Point]:
    for batch_size in batches:
        num_steps = 32 if batch_size <= 16 else 20
        context = fitting_context(batch_size, context_len, 4 * num_steps, limits)
        if context >= 64 and batch_size <= limits.max_num_seqs:
            yield DecodePoint(batch_size=batch_size, context_len=context, num_steps=num_steps, **fields)


def _first_decodes(contexts: list[int], limits: Limits) -> Iterator[Point]:
    yield from _decodes(contexts[0], limits)


def _parallel_decodes(contexts: list[int], limits: Limits) -> Iterator[Point]:
    yield from _decodes(contexts[0], limits, PARALLEL_BATCHES)


def _other_decodes(contexts: list[int], limits: Limits) -> Iterator[Point]:
    for context_len in contexts[1:]:
        yield from _decodes(context_len, limits)


def _greedy_decodes(contexts: list[int], limits: Limits) -> Iterator[Point]:
    yield from _decodes(contexts[0], limits, SPOT_BATCHES, temperature=0.0)


def _skewed_decodes(contexts: list[int], limits: Limits) -> Iterator[Point]:
    yield from _decodes(contexts[0], limits, SPOT_BATCHES[1:], router_spread=ROUTER_SPREAD)


def _routing_decodes(contexts: list[int], limits: Limits) -> Iterator[Point]:
    for spread in ROUTING_SPREADS:
        yield from _decodes(contexts[0], limits, ROUTING_BATCHES, router_spread=spread)


def _prefills(_: list[int], limits: Limits) -> Iterator[Point]:
    for num_prompts, prompt_len in PREFILLS:
        tokens = num_prompts * prompt_len
        if tokens <= limits.max_num_batched_tokens and prompt_len < limits.max_model_len:
            yield PrefillPoint(num_prompts=num_prompts, prompt_len=prompt_len, repeats=6 if tokens <= 2048 else 4)


def _rank_skews(contexts: list[int], limits: Limits) -> Iterator[Point]:
    """Decodes, prefills and loops at growing imbalance between expert-parallel ranks, popular experts together."""
    for spread in RANK_SPREADS:
        yield from _decodes(contexts[0], limits, RANK_BATCHES, router_spread=spread, router_falling=spread > 0)
        for prompt_len in RANK_PREFILLS:
            if prompt_len < limits.max_model_len:
                yield PrefillPoint(
                    num_prompts=1, prompt_len=prompt_len, repeats=6, router_spread=spread, router_falling=spread > 0
                )
        yield from _loops(0, (64, 256), limits, 2, spread)


def _forced(contexts: list[int], limits: Limits) -> Iterator[Point]:
    """Decodes and a long prefill under forced Zipf laws: popular experts together on the first ranks, then spread."""
    for exponent in FORCED_ZIPFS:
        yield from _forced_points(contexts, limits, exponent, falling=exponent > 0)
    yield from _forced_points(contexts, limits, max(FORCED_ZIPFS), falling=False)


def _forced_points(contexts: list[int], limits: Limits, exponent: float, falling: bool) -> Iterator[Point]:
    routing = f"zipf:{exponent:g}" if exponent else "uniform"
    fields: dict[str, Any] = {"router_spread": exponent, "router_falling": falling, "routing": routing}
    num_prompts, prompt_len = FORCED_PREFILL
    if num_prompts * prompt_len <= limits.max_num_batched_tokens and prompt_len < limits.max_model_len:
        yield PrefillPoint(num_prompts=num_prompts, prompt_len=prompt_len, repeats=4, **fields)
    yield from _decodes(contexts[0], limits, FORCED_BATCHES, **fields)


def _forced_worst(contexts: list[int], limits: Limits) -> Iterator[Point]:
    yield from _forced_points(contexts, limits, max(FORCED_ZIPFS), falling=True)


def _forced_settling(_: list[int], limits: Limits) -> Iterator[Point]:
    """Loops under the strongest forced law, long enough for experts to be moved before the last ones."""
    exponent = max(FORCED_ZIPFS)
    for loop in _loops(0, (64,), limits, 6, exponent):
        yield msgspec.structs.replace(loop, routing=f"zipf:{exponent:g}")


def _redrawn(_: list[int], limits: Limits) -> Iterator[Point]:
    """The long prefill and a large loop under redrawn routers, even and uneven."""
    num_prompts, prompt_len = FORCED_PREFILL
    for spread in (RANK_SPREADS[0], RANK_SPREADS[-1]):
        if num_prompts * prompt_len <= limits.max_num_batched_tokens and prompt_len < limits.max_model_len:
            fields: dict[str, Any] = {"router_spread": spread, "router_falling": spread > 0}
            yield PrefillPoint(num_prompts=num_prompts, prompt_len=prompt_len, repeats=4, **fields)
        yield from _loops(0, (256,), limits, 2, spread)


def _settling_loops(_: list[int], limits: Limits) -> Iterator[Point]:
    """Loops under one strong skew, long enough for experts to be moved before the last ones."""
    yield from _loops(0, (64,), limits, 6, RANK_SPREADS[-1])


def _mixed(_: list[int], limits: Limits) -> Iterator[Point]:
    for batch_size in MIXED_DECODES:
        for prefill_tokens in MIXED_PREFILLS:
            context = fitting_context(batch_size + 1, MIXED_CONTEXT, 256, limits)
            fits = batch_size + prefill_tokens <= limits.max_num_batched_tokens and batch_size < limits.max_num_seqs
            if context >= 64 and fits:
                yield MixedPoint(batch_size=batch_size, context_len=context, prefill_tokens=prefill_tokens, repeats=5)


def _closed_loops(
    mix: int, concurrencies: tuple[int, ...] = CONCURRENCIES
) -> Callable[[list[int], Limits], Iterator[Point]]:
    def points(_: list[int], limits: Limits) -> Iterator[Point]:
        return _loops(mix, concurrencies, limits)

    return points


def _loops(
    mix: int, concurrencies: tuple[int, ...], limits: Limits, waves: int = 0, spread: float = 0.0
) -> Iterator[Point]:
    input_len, output_len = MIXES[mix]
    for concurrency in concurrencies:
        if concurrency <= limits.max_num_seqs:
            yield ClosedLoopPoint(
                concurrency=concurrency,
                input_len=input_len,
                output_len=output_len,
                num_requests=(waves or (4 if concurrency <= 32 else 2)) * concurrency,
                router_spread=spread,
                router_falling=spread > 0,
            )


def _open_loops(_: list[int], __: Limits) -> Iterator[Point]:
    input_len, output_len = MIXES[0]
    for load in OPEN_LOADS:
        yield OpenLoopPoint(load=load, input_len=input_len, output_len=output_len, num_requests=160)


def _kernels(contexts: list[int], limits: Limits) -> Iterator[Point]:
    for batch_size in (1, 16, 64, 256):
        yield KernelsPoint(batch_size=batch_size, context_len=fitting_context(batch_size, contexts[0], 64, limits))
    for prefill_tokens in (512, 2048):
        yield KernelsPoint(batch_size=0, context_len=0, prefill_tokens=prefill_tokens)


SECTIONS: dict[str, Callable[[list[int], Limits], Iterator[Point]]] = {
    "decode": _first_decodes,
    "prefill": _prefills,
    "mixed": _mixed,
    "closed": _closed_loops(0),
    "decode-long": _other_decodes,
    "closed-long": _closed_loops(1),
    "closed-spot": _closed_loops(0, SPOT_CONCURRENCIES),
    "closed-long-spot": _closed_loops(1, SPOT_CONCURRENCIES),
    "open": _open_loops,
    "skew": _skewed_decodes,
    "routing": _routing_decodes,
    "rank-skew": _rank_skews,
    "settle": _settling_loops,
    "forced": _forced,
    "forced-worst": _forced_worst,
    "forced-settle": _forced_settling,
    "redrawn": _redrawn,
    "decode-parallel": _parallel_decodes,
    "closed-parallel": _closed_loops(0, PARALLEL_CONCURRENCIES),
    "closed-long-parallel": _closed_loops(1, PARALLEL_CONCURRENCIES),
    "greedy": _greedy_decodes,
    "kernels": _kernels,
}
