"""Seconds of one collective inside a node: transport protocols as lines of latency and bandwidth.

NCCL and RCCL choose among protocols by size (LL: flags beside every word, low latency; LL128: flags beside 120
bytes; Simple: whole buffers, high bandwidth, late start). Each is a line base + hops x hop + bytes / bandwidth, and
the collective takes the lowest, with a soft corner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_CORNER = 8.0


@dataclass(frozen=True, slots=True)
class Protocol:
    """One line. `bytes_per_s`: of the bytes that a rank sends."""

    base_s: float
    hop_s: float
    bytes_per_s: float

    def seconds(self, hops: float | FloatArray, sent_bytes: FloatArray) -> FloatArray:
        """Time of `hops` steps after one another in which a rank sends `sent_bytes` in all."""
        return self.base_s + hops * self.hop_s + sent_bytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Transport:
    """Protocols to choose from; a rank's own share is copied at `copy_bytes_per_s`."""

    protocols: tuple[Protocol, ...]
    copy_bytes_per_s: float

    def seconds(self, hops: float | FloatArray, sent_bytes: FloatArray, own_bytes: FloatArray) -> FloatArray:
        """The best protocol's time for `sent_bytes` sent and `own_bytes` copied on each rank."""
        lines = [protocol.seconds(hops, sent_bytes) for protocol in self.protocols]
        return soft_least(lines) + own_bytes / self.copy_bytes_per_s


@dataclass(frozen=True, slots=True)
class PeerReduce:
    """All-reduce kernel over peer-mapped buffers (vLLM's custom all-reduce).

    One shot: every rank reads the whole message of every other one. Two shots: reduce-scatter, then all-gather.
    The message size decides, as in its source: two shots from 512 KiB with up to four ranks, from 256 KiB above;
    two ranks always take one shot. Messages of `limit_bytes` and more go to the library's collectives.
    """

    one: Protocol
    two: Protocol
    limit_bytes: float

    def seconds(self, size: int | NDArray[np.int64], message_bytes: FloatArray) -> FloatArray:
        """Time of an all-reduce of `message_bytes` over `size` ranks."""
        ranks = np.asarray(size, dtype=float)
        one = self.one.seconds(ranks - 2, (ranks - 1) * message_bytes)
        two = self.two.seconds(ranks - 2, 2 * (ranks - 1) / ranks * message_bytes)
        limit = np.where(ranks <= 2, np.inf, np.where(ranks <= 4, 512 * 1024, 256 * 1024))
        return np.where(message_bytes < limit, one, two)


def soft_least(lines: list[FloatArray]) -> FloatArray:
    """Minimum with a rounded corner: 8 % lower where two are equal."""
    stacked = np.stack(np.broadcast_arrays(*lines))
    lowest = stacked.min(axis=0)
    return lowest * ((lowest / stacked) ** _CORNER).sum(axis=0) ** (-1 / _CORNER)
