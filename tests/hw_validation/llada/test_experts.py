"""Every way to run the experts gives the same sums."""

# ruff: noqa: E402 - what is imported depends on what is installed

from __future__ import annotations

from functools import partial

import pytest

torch = pytest.importorskip("torch")

from hw_validation.llada import ops
from hw_validation.llada.experts import PRODUCTS, Matrices, route, run_grouped, run_loop
from tests.hw_validation.llada.models import MOE, all_logits, build, tokens_of

EXPERTS, HIDDEN, WIDTH = 6, 32, 16


def problem(tokens, top_k, crowded=False):
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    logits = torch.randn(tokens, EXPERTS, generator=generator)
    if crowded:
        logits[:, :top_k] += 100.0
    matrices = Matrices(
        torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator) / 5,
        torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator) / 4,
    )
    return hidden, route(logits, top_k, renormalize=False), matrices


def direct(hidden, routing, matrices):
    """The definition, one token and expert at a time, in float64."""
    result = torch.zeros(hidden.shape, dtype=torch.float64)
    gate_up, down, hidden = matrices.gate_up.double(), matrices.down.double(), hidden.double()
    for token in range(hidden.shape[0]):
        for weight, expert in zip(routing.weights[token], routing.ids[token], strict=True):
            gate, up = (gate_up[expert] @ hidden[token]).chunk(2)
            result[token] += weight.double() * (down[expert] @ (gate * torch.sigmoid(gate) * up))
    return result.float()


@pytest.mark.parametrize(("tokens", "top_k", "crowded"), [(1, 1, False), (1, 3, False), (29, 2, False), (29, 2, True)])
def test_loop_and_grouped_equal_the_definition(tokens, top_k, crowded):
    hidden, routing, matrices = problem(tokens, top_k, crowded)
    expected = direct(hidden, routing, matrices)
    runs = {"loop": run_loop, **{name: partial(run_grouped, product) for name, product in PRODUCTS.items()}}
    for name, run in runs.items():
        if name == "grouped_mm" and not hasattr(torch.nn.functional, "grouped_mm"):
            continue
        result = run(hidden, routing, matrices).sum(dim=1)
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_loop_and_grouped_models_agree():
    model = build(MOE)
    tokens = tokens_of(MOE, 2, 33)
    grouped = all_logits(model, tokens)
    assert model.ops.name == "slices"
    model.ops = ops.choose_ops("loop", "auto", model.device, model.dtype)
    torch.testing.assert_close(all_logits(model, tokens), grouped, rtol=1e-4, atol=1e-4)


def test_weights_are_not_renormalised():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    routing = route(logits, 2, renormalize=False)
    probabilities = torch.softmax(logits, dim=-1)[0, :2]
    torch.testing.assert_close(routing.weights[0], probabilities)
    assert routing.ids.tolist() == [[0, 1]]
    torch.testing.assert_close(route(logits, 2, renormalize=True).weights.sum(), torch.tensor(1.0))


def test_loads_count_every_routed_token():
    from hw_validation.llada.distributed import SINGLE
    from hw_validation.llada.loads import ExpertLoads

    loads = ExpertLoads(MOE, torch.device("cpu"))
    loads.count(1, torch.tensor([[0, 3], [3, 5]]))
    loads.count(1, torch.tensor([[3, 0]]))
    summary = loads.summary(2, SINGLE)
    assert summary.tokens == [[0] * 8, [2, 0, 0, 3, 0, 1, 0, 0]]
    assert summary.distinct_experts_a_forward == [0.0, 2.5]
    assert summary.max_over_mean[1] == pytest.approx(3 / (6 / 8))


def test_model_counts_its_loads():
    from hw_validation.llada.loads import ExpertLoads

    model = build(MOE)
    model.loads = ExpertLoads(MOE, model.device)
    all_logits(model, tokens_of(MOE, 2, 33))
    assert model.loads.tokens.sum(dim=1).tolist() == [2 * 33 * MOE.experts_per_token] * MOE.num_layers
