"""The block pool: every block is free, owned by a request, or in a shared prefix in use."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.engine.kv_cache import BlockPool
from moesim.engine.requests import Request

BLOCK = 16
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(0, 3), st.integers(1, 200), st.integers(0, 100)),
        st.tuples(st.just("end"), st.integers(0, 30), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_blocks_are_conserved_through_any_life(actions: list[tuple[str, int, int, int]]):
    pool = BlockPool(200, BLOCK)
    live: list[Request] = []
    held: dict[int, int] = {}
    for action, number, tokens, prefix in actions:
        if action == "start":
            start(pool, Request(0, tokens, 1, number, min(prefix, tokens), 0, target=tokens), live, held)
        elif live:
            request = live.pop(number % len(live))
            pool.release(request)
        in_use = {r.prefix_id for r in live if r.shared_blocks}
        owned = sum(request.blocks for request in live)
        shared = sum(held[identity] for identity in in_use)
        assert pool.free + owned + shared == pool.total
        assert 0 <= pool.lowest_free <= pool.free
    for request in live:
        pool.release(request)
    assert pool.free == pool.total


def start(pool: BlockPool, request: Request, live: list[Request], held: dict[int, int]) -> None:
    """Admit as the scheduler does, prefill at once and publish the prefix."""
    hit = pool.cached_blocks(request)
    own = pool.blocks_for(request.target) - hit
    if own + (pool.cost_of_sharing(request) if hit else 0) > pool.free:
        return
    if hit:
        pool.share(request, hit)
    pool.take(own)
    request.blocks = own
    before = request.shared_blocks
    pool.publish(request)
    if request.shared_blocks and not before:
        held[request.prefix_id] = request.shared_blocks
    live.append(request)


def test_a_prefix_in_use_is_shared_and_an_idle_one_is_found_again():
    pool = BlockPool(10, BLOCK)
    first = Request(0, 64, 1, 7, 48, 0, target=64)
    pool.take(4)
    first.blocks = 4
    pool.publish(first)
    second = Request(1, 64, 1, 7, 48, 0, target=64)
    assert pool.cached_blocks(second) == 3
    pool.share(second, 3)
    assert pool.free == 6
    pool.release(first)
    assert pool.free == 7
    pool.release(second)
    assert pool.free == 10
    assert pool.cached_blocks(second) == 3


def test_idle_prefixes_give_way_to_new_blocks():
    pool = BlockPool(10, BLOCK)
    request = Request(0, 64, 1, 7, 64, 0, target=64)
    pool.take(4)
    request.blocks = 4
    pool.publish(request)
    pool.release(request)
    pool.take(10)
    assert pool.cached_blocks(Request(1, 64, 1, 7, 64, 0, target=64)) == 0
