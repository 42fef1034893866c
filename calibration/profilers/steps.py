"""Engine steps in traces: what the annotations of vLLM and SGLang say, and which kernels belong to which step.

vLLM names a step `execute_context_2(1024)_generation_30(30)` (requests, and new tokens of each kind), older
versions `execute_new_2_cached_30`; the detailed form, which SGLang writes as well, is
`execute_1054_context_2(sq1024sk2048sqsq524288sqsk1048576)_generation_30(sq30...)`: all new tokens, then for each
kind the requests and sums over them of query lengths, key lengths, and their products.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

from calibration.profilers.tables import Step, Tokens

_COUNTS = r"\((?:(?P<{0}_plain>\d+)|sq(?P<{0}_q>\d+)sk(?P<{0}_k>\d+)(?:sqsq(?P<{0}_qq>\d+)sqsk(?P<{0}_qk>\d+))?)\)"
_EXECUTE = re.compile(
    r"^execute(?:_(?P<tokens>\d+))?_context_(?P<context>\d+)"
    + _COUNTS.format("c")
    + r"_generation_(?P<generation>\d+)"
    + _COUNTS.format("g")
    + "$"
)
_OLD = re.compile(r"^execute_new_(?P<context>\d+)_cached_(?P<generation>\d+)$")
_OTHER = (re.compile(r"^step\[.*\]$"), re.compile(r"^ProfilerStep#\d+$"))
_MAX_NAME_CHARS = 300


def looks_like_step(name: str) -> bool:
    """Whether an annotation marks a step (of an engine, or of torch.profiler's schedule)."""
    return _rank(name) is not None


def make_step(name: str, start_s: float, duration_s: float, on_device: bool) -> Step:
    """A step with what its name says about the batch."""
    found = _EXECUTE.match(name) if len(name) <= _MAX_NAME_CHARS else None
    if found is None:
        old = _OLD.match(name)
        context, generation = (Tokens(requests=int(old[kind])) if old else None for kind in ("context", "generation"))
        return Step(
            name=name,
            start_s=start_s,
            duration_s=duration_s,
            on_device=on_device,
            context=context,
            generation=generation,
        )
    context, generation = _tokens(found, "context", "c"), _tokens(found, "generation", "g")
    queries = [kind.query for kind in (context, generation) if kind.query is not None]
    return Step(
        name=name,
        start_s=start_s,
        duration_s=duration_s,
        on_device=on_device,
        tokens=int(found["tokens"]) if found["tokens"] else sum(queries),
        context=context,
        generation=generation,
    )


def choose_steps(steps: Sequence[Step]) -> list[Step]:
    """The engine's steps, else its other marks, else torch.profiler's; on the device where there are such."""
    ranks = {rank for step in steps if (rank := _rank(step.name)) is not None}
    if not ranks:
        return []
    chosen = [step for step in steps if _rank(step.name) == min(ranks)]
    on_device = [step for step in chosen if step.on_device]
    return sorted(on_device or chosen, key=lambda step: step.start_s)


class StepFinder:
    """Finds the step in which a time lies; steps that overlap are told apart by their start."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._starts = [step.start_s for step in steps]
        self._ends = [step.start_s + step.duration_s for step in steps]

    def at(self, time_s: float | None) -> int | None:
        """Index of the step that holds `time_s`, or None."""
        if time_s is None:
            return None
        index = bisect_right(self._starts, time_s) - 1
        return index if index >= 0 and time_s <= self._ends[index] else None


def _rank(name: str) -> int | None:
    if len(name) > _MAX_NAME_CHARS:
        return None
    if _EXECUTE.match(name) or _OLD.match(name):
        return 0
    return next((rank for rank, pattern in enumerate(_OTHER, start=1) if pattern.match(name)), None)


def _tokens(found: re.Match[str], kind: str, short: str) -> Tokens:
    def number(part: str) -> int | None:
        text = found[f"{short}_{part}"]
        return int(text) if text is not None else None

    plain = number("plain")
    return Tokens(
        requests=int(found[kind]),
        query=plain if plain is not None else number("q"),
        key=number("k"),
        query_query=number("qq"),
        query_key=number("qk"),
    )
