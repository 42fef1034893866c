"""Run by `test_kernels.py` with TRITON_INTERPRET=1: each kernel against its PyTorch version."""

from __future__ import annotations

import time

import torch
from torch.testing import assert_close

from hw_validation.llada import experts, fused, ops, products, tiles, tuning
from tests.hw_validation.llada.models import DENSE, MOE, all_logits, build, tokens_of


def check_route():
    logits = torch.randn(13, 6)
    for renormalize in (False, True):
        ours, theirs = fused.route(logits, 3, renormalize), experts.route(logits, 3, renormalize)
        assert_close(ours.weights, theirs.weights)
        assert_close(ours.ids.long(), theirs.ids)


def check_norm():
    """In float32, and in bfloat16 with the same single rounding; a size that is no power of two, three dimensions."""
    for shape in ((7, 64), (2, 3, 40)):
        for dtype in (torch.float32, torch.bfloat16):
            hidden = (3 * torch.randn(shape)).to(dtype)
            weight = (1 + 0.2 * torch.randn(shape[-1])).to(dtype)
            mine, other = fused.norm(hidden, weight, 1e-5), ops.norm(hidden.float(), weight.float(), 1e-5)
            assert_close(mine, other.to(dtype))
            assert mine.shape == hidden.shape


def check_sort():
    """One compiled kernel for every number of pairs, among them a single one and more than a chunk."""
    for count in (1, 2, 33, 4097):
        ids = torch.randint(5, (count, 1), dtype=torch.int32)
        pairs = fused.sort_by_expert(ids, 6)
        expected = torch.sort(ids.flatten().long(), stable=True)
        assert_close(pairs.order.long(), expected.indices)
        assert_close(pairs.starts.long(), torch.searchsorted(expected.values, torch.arange(7)))


def check_rotate():
    qkv, table = torch.randn(2, 5, 8 * 16), torch.randn(5, 2, 8)
    for norm in (None, torch.randn(2, 16)):
        theirs = ops.rotate(qkv.clone(), table, norm, (4, 2), 1e-5)
        for mine, other in zip(fused.rotate(qkv.clone(), table, norm, (4, 2), 1e-5), theirs, strict=True):
            assert_close(mine, other)


def check_swiglu():
    gate_up = torch.randn(7, 48)
    assert_close(fused.swiglu(gate_up), experts.swiglu(gate_up))


def check_gated():
    table = tiles.TileTable()
    inputs, gate_up = torch.randn(21, 64), torch.randn(2 * 32, 64) / 8
    expected = ops.gated(inputs, gate_up)
    assert_close(fused.gated(table, inputs, gate_up), expected)
    table.put_dense(21, tiles.Tile(16, 16, 32, 4, 3))
    assert_close(fused.gated(table, inputs, gate_up), expected, rtol=1e-4, atol=1e-5)


def check_combine():
    summands = torch.randn(7, 3, 40)
    mine = torch.randn(7, 40)
    other = mine.clone()
    fused.combine(mine, summands)
    ops.combine(other, summands)
    assert_close(mine, other)


def check_experts():
    """One crowded expert (several row tiles), some empty ones."""
    matrices = experts.Matrices(torch.randn(6, 2 * 32, 64) / 8, torch.randn(6, 64, 32) / 6)
    logits = torch.randn(41, 6)
    logits[:, 4] += 100.0
    logits[:, 1] -= 100.0
    hidden, routing = torch.randn(41, 64), experts.route(logits, 2, renormalize=False)
    theirs = experts.run_grouped(experts.by_slices, hidden, routing, matrices)
    mine = fused.run_experts(tiles.TileTable(), hidden, routing, matrices)
    assert_close(mine.sum(dim=1), theirs.sum(dim=1), rtol=1e-4, atol=1e-5)


def check_model():
    for architecture in (MOE, DENSE):
        model = build(architecture)
        tokens = tokens_of(architecture, 1, 9)
        expected = all_logits(model, tokens)
        model.ops = fused.triton_ops()
        assert_close(all_logits(model, tokens), expected, rtol=1e-4, atol=1e-4)


class HostEvent:
    """Stands in for a CUDA event."""

    def __init__(self, enable_timing):  # noqa: ARG002
        self.seconds = 0.0

    def record(self):
        self.seconds = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return other.seconds - self.seconds


def check_tuning():
    """The tuner fills the table, restores the model's operators, and its tiles give the same logits."""
    torch.cuda.Event = HostEvent
    tuning._SWEEPS = tuning._FIRST_SWEEPS = 1
    tiles.CANDIDATES = (tiles.Tile(16, 32, 32, 4, 3), tiles.Tile(16, 16, 32, 4, 3))
    for architecture in (MOE, DENSE):
        model = build(architecture)
        tokens = tokens_of(architecture, 1, 9)
        expected = all_logits(model, tokens)
        table, ways = tiles.TileTable(), products.ProductTable()
        model.ops = chosen = fused.triton_ops(table, ways)
        tuning.tune(model, tokens, table, ways, head_rows=9)
        assert model.ops is chosen
        assert len(ways.as_dict()) == (3 if architecture.is_moe else 4)  # tiny-dense: qkv is as large as gate_up
        assert table.knows(18 if architecture.is_moe else 9)
        assert_close(all_logits(model, tokens), expected, rtol=1e-4, atol=1e-4)
        assert any(table.as_dict().values())


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    checks = (
        check_route,
        check_norm,
        check_sort,
        check_rotate,
        check_swiglu,
        check_gated,
        check_combine,
        check_experts,
        check_model,
        check_tuning,
    )
    for check in checks:
        with torch.no_grad():
            check()
        print(check.__name__.removeprefix("check_"))


if __name__ == "__main__":
    main()
