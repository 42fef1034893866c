from __future__ import annotations

import pytest

from hw_validation.dummy_weights import condition_weights, draw_routers, estimate_loads

torch = pytest.importorskip("torch")


def build() -> torch.nn.Module:
    layers = torch.nn.ModuleList()
    for _ in range(2):
        layer = torch.nn.Module()
        layer.gate = torch.nn.Linear(64, 16, bias=False)
        layer.gate.e_score_correction_bias = torch.nn.Parameter(torch.full((16,), 0.5))
        layer.input_layernorm = torch.nn.RMSNorm(64)
        torch.nn.init.constant_(layer.gate.weight, 1e-3)
        torch.nn.init.constant_(layer.input_layernorm.weight, 1e-3)
        layers.append(layer)
    model = torch.nn.Module()
    model.layers = layers
    return model


def test_layers_route_each_for_itself_and_evenly() -> None:
    model = build()
    assert condition_weights(model) == {"fp8_tensors_filled": 0, "norms_set": 2, "routers_redrawn": 2}
    first, second = model.layers
    assert not torch.equal(first.gate.weight, second.gate.weight)
    assert torch.all(first.gate.e_score_correction_bias == 0)
    assert torch.all(first.input_layernorm.weight == 1)
    assert estimate_loads(model, top_k=4)["expert_load_gini"] < 0.15


def test_spread_makes_loads_uneven() -> None:
    model = build()
    draw_routers(model, 0.0)
    even = estimate_loads(model, top_k=4)["expert_load_gini"]
    draw_routers(model, 1.0)
    assert estimate_loads(model, top_k=4)["expert_load_gini"] > even + 0.1


def test_redrawing_keeps_the_storage_that_graphs_captured() -> None:
    model = build()
    before = model.layers[0].gate.weight.data_ptr()
    condition_weights(model)
    assert model.layers[0].gate.weight.data_ptr() == before


def test_eight_bit_weights_get_random_finite_numbers() -> None:
    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.zeros(64, 64).to(torch.float8_e4m3fn), requires_grad=False)
    layer.weight_scale_inv = torch.nn.Parameter(torch.zeros(1, 1))
    assert condition_weights(layer)["fp8_tensors_filled"] == 1
    values = layer.weight.float()
    assert torch.isfinite(values).all()
    assert (values != 0).float().mean() > 0.9
    assert layer.weight_scale_inv.item() == pytest.approx(1e-3)
