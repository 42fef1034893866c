"""On a GPU only: the kernels that run there against float32, and graphs against eager forwards."""

# ruff: noqa: E402 - what is imported depends on what is installed

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from hw_validation.llada.blaslt import Shape
from hw_validation.llada.config import preset
from hw_validation.llada.engine import Effort, Engine
from hw_validation.llada.experts import PRODUCTS, Matrices, by_slices, pick_product, route, run_grouped, run_loop
from hw_validation.llada.graphs import GraphedForward
from hw_validation.llada.model import Llada
from hw_validation.llada.ops import choose_ops
from hw_validation.llada.products import open_library, ways
from hw_validation.llada.settings import RunSettings
from hw_validation.llada.weights import fill_random

GPU = torch.device("cuda", 0)
MOE = replace(preset("llada-moe-7b"), num_layers=2)
DENSE = replace(preset("llada-8b"), num_layers=2)


def relative_error(result, reference):
    return ((result.float() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("tokens", [1, 188, 1504])
def test_experts_of_the_real_size(tokens, crowded):
    generator = torch.Generator(GPU).manual_seed(tokens)
    draw = partial(torch.randn, device=GPU, generator=generator)
    hidden = draw(tokens, 2048)
    logits = draw(tokens, 64)
    logits[: tokens // 2, :8] += 100.0 * crowded
    matrices = Matrices(draw(64, 2048, 2048) * 0.02, draw(64, 2048, 1024) * 0.02)
    half = Matrices(matrices.gate_up.bfloat16(), matrices.down.bfloat16())
    exact = Matrices(half.gate_up.float(), half.down.float())
    routing = route(logits.bfloat16(), 8, renormalize=False)
    exact_routing = replace(routing, weights=routing.weights.float())
    reference = run_grouped(by_slices, hidden.bfloat16().float(), exact_routing, exact).sum(dim=1)
    runs = {"loop": run_loop, "padded": partial(run_grouped, PRODUCTS["padded"])}
    best = pick_product(GPU, torch.bfloat16)
    runs[best] = partial(run_grouped, PRODUCTS[best])
    runs["auto"] = choose_ops("grouped", "auto", GPU, torch.bfloat16).experts
    for name, run in runs.items():
        if name == "padded" and tokens > 188:
            continue
        error = relative_error(run(hidden.bfloat16(), routing, half).float().sum(dim=1), reference)
        assert error < 2e-2, (name, error)


def test_triton_routes_as_torch_does():
    ops = choose_ops("grouped", "auto", GPU, torch.bfloat16)
    logits = torch.randn(188, 64, device=GPU).bfloat16()
    ours, theirs = ops.route(logits, 8, False), route(logits, 8, renormalize=False)
    torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("size", [2048, 4096])
@pytest.mark.parametrize("rows", [1, 188, 3008])
def test_norm_rounds_as_torch_does(rows, size):
    hidden, weight = (torch.randn(*shape, device=GPU).bfloat16() for shape in ((rows, size), (size,)))
    fused, plain = (choose_ops("grouped", kernels, GPU, torch.bfloat16).norm for kernels in ("auto", "torch"))
    ours, theirs = fused(hidden, weight, 1e-5), plain(hidden, weight, 1e-5)
    assert (ours != theirs).float().mean() < 0.01  # sums in another order: a last bit now and then
    torch.testing.assert_close(ours, theirs)


def test_one_sort_kernel_serves_every_number_of_pairs():
    from hw_validation.llada.fused import kernels, sort_by_expert

    sizes = (1500, 1504, 1505, 1600, 2000)
    counts = []
    for pairs in sizes:
        ids = torch.randint(32, (pairs, 1), device=GPU, dtype=torch.int32)
        found = sort_by_expert(ids, 32)
        assert torch.equal(found.order.long(), torch.sort(ids.flatten(), stable=True).indices)
        counts.append(len(kernels.sort_kernel.device_caches[GPU.index][0]))
    assert len(set(counts)) == 1


def typical_error(result, reference):
    """The median position's relative error: a few positions may go to another expert in bfloat16."""
    errors = (result.float() - reference).norm(dim=-1) / reference.norm(dim=-1)
    return errors.median().item()


def forward_inputs(architecture, batch=2, length=92):
    tokens = torch.randint(architecture.mask_token_id, (batch, length), device=GPU)
    return tokens, torch.arange(length, device=GPU), torch.arange(60, length, device=GPU)


def build(architecture, dtype=torch.bfloat16):
    model = Llada(architecture, GPU, dtype)
    fill_random(model, 0)
    return model


@pytest.mark.parametrize("architecture", [MOE, DENSE], ids=["moe", "dense"])
def test_one_layer_in_bfloat16_is_close_to_float32(architecture):
    one = replace(architecture, num_layers=1)
    exact, model = build(one, torch.float32), build(one)
    for mine, other in zip(exact.parameters(), model.parameters(), strict=True):
        mine.copy_(other.float())
    exact.ops = choose_ops("loop", "torch", GPU, torch.float32)
    inputs = forward_inputs(one)
    reference = exact(*inputs)
    for execution, kernels in (("loop", "torch"), ("grouped", "torch"), ("grouped", "auto")):
        model.ops = choose_ops(execution, kernels, GPU, torch.bfloat16)
        assert typical_error(model(*inputs), reference) < 0.03, model.ops.name


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("architecture", [MOE, DENSE], ids=["moe", "dense"])
def test_graph_equals_eager(architecture, kernels):
    model = build(architecture)
    model.ops = choose_ops("grouped", kernels, GPU, torch.bfloat16)
    graphed = GraphedForward(model)
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        tokens, positions, rows = forward_inputs(architecture)
        reference = model(tokens, positions, rows).float()
        assert typical_error(graphed(tokens, positions, rows), reference) < 0.01
    assert graphed.num_graphs == 1


def test_graph_with_a_cache_serves_every_block():
    model = build(DENSE)
    tokens, positions, rows = forward_inputs(DENSE)
    cache = model.new_cache(2, 92)
    graphed = GraphedForward(model)
    graphed(tokens, positions, rows, cache)
    whole = model(tokens, positions, positions).float()
    for first in (60, 76):
        block = torch.arange(first, first + 16, device=GPU)
        part = graphed(tokens[:, first : first + 16], block, block - first, cache)
        assert typical_error(part, whole[:, first : first + 16]) < 0.02
    assert graphed.num_graphs == 2


@pytest.mark.parametrize("architecture", [MOE, DENSE], ids=["moe", "dense"])
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_engine_runs_tuned_graphs(architecture, cache):
    engine = Engine(architecture, GPU, torch.bfloat16)
    settings = RunSettings(generation_len=64, steps=16, cache=cache, graphs=True, expert_loads=architecture.is_moe)
    run = engine.measure(settings, Effort(repeats=2))
    record = run.as_dict()
    assert record["measured"]["forwards"] == 16
    assert record["measured"]["forward_step_ms"] < 100
    if architecture.is_moe and cache == "none":
        assert sum(record["expert_loads"]["tokens"][0]) == 2 * 16 * 124 * 8


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("width", "depth"), [(12288, 4096), (4096, 12288)])
def test_every_way_of_a_product_at_the_real_size(width, depth, adds):
    shape = Shape(188, width, depth, adds)
    inputs, matrix = (torch.randn(*size, device=GPU, dtype=torch.bfloat16) for size in ((188, depth), (width, depth)))
    start = torch.randn(188, width, device=GPU, dtype=torch.bfloat16)
    reference = inputs.float() @ matrix.float().T + adds * start.float()
    found = ways(shape, torch.bfloat16, open_library(GPU))
    assert torch.version.hip or any(name.startswith("cublasLt") for name in found)
    for name, way in found.items():
        result = way(inputs, matrix, start.clone() if adds else None)
        assert relative_error(result, reference) < 0.01, name
