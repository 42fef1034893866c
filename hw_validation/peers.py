"""Processes that run one deployment together: what all of them must do alike is said by the first.

Every process drives its own engine, and the engines meet in collectives. A process that stops, skips a point or
redraws routers alone leaves the others waiting for ever, so whatever a clock or a file decides is told to all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from moesim.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Peers:
    """This process's place among `size`: `replicas` data-parallel replicas of neighbouring tensor-parallel ranks."""

    rank: int = 0
    size: int = 1
    replicas: int = 1
    group: Any = None

    @property
    def replica(self) -> int:
        """Index of this process's replica: its ranks get the same prompts, other replicas others."""
        return self.rank * self.replicas // self.size

    def agree(self, mine: bool) -> bool:
        """What the first process says, on all of them (some 0.1 ms)."""
        if self.size == 1:
            return mine
        import torch
        import torch.distributed as dist

        flag = torch.tensor([mine], dtype=torch.int32)
        dist.broadcast(flag, src=0, group=self.group)
        return bool(flag[0])

    def first(self, value: T) -> T:
        """The first process's `value`, on all of them."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        held = [value]
        dist.broadcast_object_list(held, src=0, group=self.group)
        return held[0]

    def all(self, value: T) -> list[T]:
        """Every process's `value`, in order of rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def one_per_replica(self, value: T) -> list[T]:
        """The `value` of the first rank of every replica."""
        return self.all(value)[:: self.size // self.replicas]


ALONE = Peers()


def join_peers(replicas: int) -> Peers:
    """This process's place in torch's default process group, with a group of the CPU's own for agreements.

    Raises:
        InputError: `replicas` do not divide the processes.
    """
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    rank, size = dist.get_rank(), dist.get_world_size()
    if size % replicas:
        raise InputError(f"data_parallel_size: {replicas} does not divide the {size} processes")
    return Peers(rank, size, replicas, dist.new_group(backend="gloo"))
