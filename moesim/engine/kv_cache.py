"""The KV block pool of one engine: counts of blocks, and shared prefixes that outlive their requests."""

from __future__ import annotations

from collections import OrderedDict

from moesim.engine.requests import Request


class BlockPool:
    """`total` blocks of `block_size` tokens.

    Invariant: free + blocks of live requests + blocks of prefixes in use = total. Prefixes in use by nobody
    stay readable inside the free blocks until those are needed (least recently used first), as in vLLM.
    """

    __slots__ = ("_idle", "_idle_blocks", "_in_use", "block_size", "free", "lowest_free", "total")

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self.free = total
        self.lowest_free = total
        self._idle: OrderedDict[int, int] = OrderedDict()
        self._idle_blocks = 0
        self._in_use: dict[int, list[int]] = {}

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def take(self, blocks: int) -> None:
        """Take free blocks, forgetting idle prefixes that lie in them."""
        free = self.free = self.free - blocks
        if free < self.lowest_free:  # noqa: PLR1730 (a call of min costs more than the rest of this function)
            self.lowest_free = free
        while self._idle_blocks > free:
            self._idle_blocks -= self._idle.popitem(last=False)[1]

    def release(self, request: Request) -> None:
        """Give back a request's own blocks and its hold on a shared prefix."""
        self.free += request.blocks
        request.blocks = 0
        if request.shared_blocks:
            entry = self._in_use[request.prefix_id]
            entry[1] -= 1
            if entry[1] == 0:
                del self._in_use[request.prefix_id]
                self.free += entry[0]
                self._idle[request.prefix_id] = entry[0]
                self._idle_blocks += entry[0]
            request.shared_blocks = 0

    def cached_blocks(self, request: Request) -> int:
        """Blocks of the request's prefix that are in the cache now (whole blocks; the last token is computed)."""
        if request.prefix_id < 0:
            return 0
        if request.prefix_id in self._in_use:
            held = self._in_use[request.prefix_id][0]
        else:
            held = self._idle.get(request.prefix_id, 0)
        return min(held, (request.target - 1) // self.block_size)

    def cost_of_sharing(self, request: Request) -> int:
        """Free blocks that using the cached prefix takes out of circulation (idle prefixes only)."""
        return 0 if request.prefix_id in self._in_use else self._idle.get(request.prefix_id, 0)

    def share(self, request: Request, blocks: int) -> None:
        """Hold the cached prefix for this request."""
        entry = self._in_use.get(request.prefix_id)
        if entry is None:
            held = self._idle.pop(request.prefix_id)
            self._idle_blocks -= held
            self._in_use[request.prefix_id] = entry = [held, 0]
            self.take(held)
        entry[1] += 1
        request.shared_blocks = blocks

    def publish(self, request: Request) -> None:
        """Make a freshly prefilled prefix readable by others: its whole blocks move to a shared entry."""
        whole = request.prefix_tokens // self.block_size
        if request.prefix_id < 0 or request.shared_blocks or not whole or request.prefix_id in self._in_use:
            return
        if request.prefix_id in self._idle:
            self._idle_blocks -= self._idle.pop(request.prefix_id)
        self._in_use[request.prefix_id] = [whole, 1]
        request.blocks -= whole
        request.shared_blocks = whole
