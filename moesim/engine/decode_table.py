"""Decode attention of a batch as straight pieces of its cached tokens, cheap enough to ask in every step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.costs.attention import AttentionCoefficients

FloatArray = NDArray[np.float64]
Piece = tuple[float, float, int]
_SPACING = 64
_PAGE = 64
_PAGE_TOKENS = _SPACING * _PAGE
_COUNTS = np.arange(4096)
_OFFSETS = _COUNTS.astype(float)


class DecodeTable:
    """Decode attention of `sequences` sequences, exact at every 64th cached token a sequence and linear between.

    What that leaves out is the curve between two knots: 2 % of the attention of a run of steps, 8 % of a single
    step where a window fills.
    Pages of 64 pieces are computed when a batch first reaches them.
    """

    __slots__ = ("_arrays", "_attention", "_from", "_last", "_pages", "_width", "sequences")

    def __init__(self, attention: AttentionCoefficients, sequences: int) -> None:
        self.sequences = sequences
        self._attention = attention
        self._width = sequences * _SPACING
        self._pages: dict[int, list[Piece]] = {}
        self._arrays: dict[int, tuple[FloatArray, FloatArray]] = {}
        self._from = 0
        self._last: Piece = (0.0, 0.0, 0)

    def piece(self, context: int) -> Piece:
        """(a, b, end): a + b * context seconds from `context` cached tokens in all to below `end`."""
        if self._from <= context < self._last[2]:
            return self._last
        knot = context // self._width
        page = self._pages.get(knot // _PAGE)
        if page is None:
            page = self._add_page(knot // _PAGE)
        self._from, self._last = knot * self._width, page[knot % _PAGE]
        return self._last

    def few_steps_s(self, context: int, steps: int, other_s: float) -> list[float]:
        """Seconds of each of `steps` steps that begin with `context` cached tokens, `other_s` added to each."""
        sequences = self.sequences
        start, slope, end = self.piece(context)
        last = context + sequences * (steps - 1)
        if last < end:
            return [start + slope * cached + other_s for cached in range(context, last + 1, sequences)]
        seconds: list[float] = []
        for _ in range(steps):
            if context >= end:
                start, slope, end = self.piece(context)
            seconds.append(start + slope * context + other_s)
            context += sequences
        return seconds

    def steps_s(self, context: int, steps: int, other_s: float) -> FloatArray:
        """The same as an array, page by page."""
        seconds = np.empty(steps)
        first, done = context // self.sequences, 0
        while done < steps:
            page = (first + done) // _PAGE_TOKENS
            upto = min(steps, (page + 1) * _PAGE_TOKENS - first)
            if page not in self._arrays:
                self._add_page(page)
            starts, slopes = self._arrays[page]
            knots = (first - page * _PAGE_TOKENS + _COUNTS[done:upto]) // _SPACING
            seconds[done:upto] = (
                starts[knots] + slopes[knots] * (context + self.sequences * _OFFSETS[done:upto]) + other_s
            )
            done = upto
        return seconds

    def _add_page(self, page: int) -> list[Piece]:
        knots = (page * _PAGE + np.arange(_PAGE + 1.0)) * self._width
        values = self._attention.decode_steps_s(self.sequences, knots)
        slopes = np.diff(values) / self._width
        starts = values[:-1] - slopes * knots[:-1]
        self._arrays[page] = starts, slopes
        pieces = list(zip(starts.tolist(), slopes.tolist(), knots[1:].astype(int).tolist(), strict=True))
        self._pages[page] = pieces
        return pieces
