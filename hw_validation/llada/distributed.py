"""Several processes run one model: tensor parallel (heads and widths sharded) and expert parallel (whole experts).

The ranks form `dp` replicas of `tp` neighbours. With `ep` 1 every expert is sharded over its replica's `tp` ranks
and replicas never meet. With `ep` equal to the number of ranks each rank owns whole experts, all replicas step
together, and tokens travel to their experts and back by two all-to-all exchanges a layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from hw_validation.llada.config import Architecture, InputError
from hw_validation.llada.experts import Routing


@dataclass(frozen=True, slots=True)
class Parallel:
    """This process's place among `world` ranks; one rank alone by default, for which every exchange is a no-op."""

    rank: int = 0
    world: int = 1
    tp: int = 1
    ep: int = 1
    tp_group: dist.ProcessGroup | None = None
    peer_group: dist.ProcessGroup | None = None

    @property
    def replicas(self) -> int:
        """Data-parallel replicas, each with prompts of its own."""
        return self.world // self.tp

    @property
    def replica(self) -> int:
        """Index of this rank's replica."""
        return self.rank // self.tp

    @property
    def tp_rank(self) -> int:
        """Index of this rank inside its replica."""
        return self.rank % self.tp

    @property
    def expert_tp(self) -> int:
        """Ranks that share the width of one expert."""
        return 1 if self.ep > 1 else self.tp

    def sum_shards(self, partial: Tensor) -> Tensor:
        """The sum of a replica's partial results, in place."""
        if self.tp > 1:
            dist.all_reduce(partial, group=self.tp_group)
        return partial

    def join_last(self, shard: Tensor) -> Tensor:
        """Shards of the last dimension side by side: [..., n] to [..., tp * n]."""
        if self.tp == 1:
            return shard
        shards = [torch.empty_like(shard) for _ in range(self.tp)]
        dist.all_gather(shards, shard.contiguous(), group=self.tp_group)
        return torch.cat(shards, dim=-1)

    def sum_replicas(self, counts: Tensor) -> Tensor:
        """The sum over replicas that step together, in place."""
        if self.ep > 1 and self.replicas > 1:
            dist.all_reduce(counts, group=self.peer_group)
        return counts

    def any(self, flag: Tensor) -> bool:
        """Whether the flag holds here or on any rank that must step together with this one."""
        if self.ep > 1:
            value = flag.to(torch.int32)
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
            return bool(value.item())
        return bool(flag.item())

    def local_expert(self, expert: int, num_experts: int) -> int | None:
        """Index on this rank of a global expert, or None where another rank owns it."""
        if self.ep == 1:
            return expert
        each = num_experts // self.ep
        return expert - self.rank * each if expert // each == self.rank else None


SINGLE = Parallel()


def join_ranks(tp: int, ep: int, device: torch.device) -> Parallel:
    """This process's place, from the environment that `torchrun` sets; starts NCCL (GPU) or gloo (CPU)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if tp < 1 or world % tp:
        raise InputError(f"tp: {tp} does not divide the {world} ranks (start them with torchrun --nproc-per-node)")
    if ep not in (1, world):
        raise InputError(f"ep: {ep} must be 1 or the number of ranks, {world}")
    if world == 1:
        return SINGLE
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return make_groups(tp, ep)


def make_groups(tp: int, ep: int) -> Parallel:
    """The place of this rank in an initialised process group; every rank must call it with the same sizes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    rows = [list(range(first, first + tp)) for first in range(0, world, tp)]
    columns = [list(range(column, world, tp)) for column in range(tp)]
    return Parallel(rank, world, tp, ep, _own_group(rows, rank), _own_group(columns, rank))


def _own_group(groups: Sequence[list[int]], rank: int) -> dist.ProcessGroup | None:
    """The group of `groups` that contains `rank`; every rank creates all of them, as torch requires."""
    own = None
    for members in groups:
        group = dist.new_group(members)
        if rank in members and isinstance(group, dist.ProcessGroup):
            own = group
    return own


def check_sizes(architecture: Architecture, parallel: Parallel) -> None:
    """Refuse a split that does not divide the model."""
    tp, ep = parallel.tp, parallel.ep
    if ep > 1 and not architecture.is_moe:
        raise InputError(f"ep: {ep} asked for, but {architecture.name} has no routed experts")
    sizes = {
        "heads": architecture.num_heads,
        "key/value heads": architecture.num_kv_heads,
        "vocabulary": architecture.vocab_size,
    }
    width = architecture.expert_size if architecture.is_moe else architecture.intermediate_size
    sizes["feed-forward width"] = tp if ep > 1 else width
    for word, size in sizes.items():
        if size % tp:
            raise InputError(f"tp: {tp} does not divide the {size} of {architecture.name} ({word})")
    if architecture.is_moe and architecture.num_experts % ep:
        raise InputError(f"ep: {ep} does not divide the {architecture.num_experts} experts of {architecture.name}")


LocalExperts = Callable[[Tensor, Tensor], Tensor]
"""Rows [n, hidden] and the local expert of each [n] to the expert outputs [n, hidden]."""


def run_dispatched(
    hidden: Tensor, routing: Routing, local: LocalExperts, parallel: Parallel, num_experts: int
) -> Tensor:
    """The routed experts' weighted sum for `hidden` [tokens, hidden], on any rank's experts.

    Tokens that a replica's ranks hold in common are shared out among them. Each (token, expert) pair travels to
    the rank that owns the expert and its result travels back; one host synchronisation learns the split sizes.
    """
    first, stop = _share(hidden.shape[0], parallel)
    pairs = routing.ids[first:stop].reshape(-1)
    top_k, each = routing.ids.shape[1], num_experts // parallel.ep
    order = torch.argsort(pairs, stable=True)
    sent = torch.bincount(pairs // each, minlength=parallel.ep)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    out_splits, in_splits = torch.stack((sent, received)).tolist()
    rows = hidden[first:stop].index_select(0, order // top_k)
    arrived = _all_to_all(rows, out_splits, in_splits)
    experts = _all_to_all(pairs[order] % each, out_splits, in_splits)
    returned = _all_to_all(local(arrived, experts), in_splits, out_splits)
    slots = torch.empty_like(returned).index_copy_(0, order, returned)
    mixed = torch.bmm(routing.weights[first:stop].unsqueeze(1), slots.view(stop - first, top_k, -1)).squeeze(1)
    if parallel.tp == 1:
        return mixed
    whole = torch.zeros_like(hidden)
    whole[first:stop] = mixed
    return parallel.sum_shards(whole)


def _share(tokens: int, parallel: Parallel) -> tuple[int, int]:
    """First and last (exclusive) of the replica's tokens that this rank dispatches."""
    return tokens * parallel.tp_rank // parallel.tp, tokens * (parallel.tp_rank + 1) // parallel.tp


def _all_to_all(rows: Tensor, out_splits: list[int], in_splits: list[int]) -> Tensor:
    """Send `out_splits[r]` rows to rank r and receive `in_splits[r]` from it, in rank order."""
    arrived = rows.new_empty((sum(in_splits), *rows.shape[1:]))
    dist.all_to_all_single(arrived, rows.contiguous(), in_splits, out_splits)
    return arrived
