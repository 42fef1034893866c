from __future__ import annotations

import sys
import types

import pytest

torch = pytest.importorskip("torch")

from hw_validation.server.routing import ZipfRouting, register, strategy_names  # noqa: E402


def loads(exponent: float, experts: int = 64, top_k: int = 8, tokens: int = 20_000) -> torch.Tensor:
    torch.manual_seed(0)
    hidden, logits = torch.zeros(tokens, 4), torch.zeros(tokens, experts)
    weights, ids = ZipfRouting(exponent).route_tokens(hidden, logits, top_k)
    assert ids.shape == weights.shape == (tokens, top_k)
    assert weights.sum(dim=1).allclose(torch.ones(tokens))
    assert all(len(set(row)) == top_k for row in ids[:200].tolist())
    return torch.bincount(ids.flatten(), minlength=experts).double()


def test_every_expert_is_drawn_and_skew_grows_with_the_exponent() -> None:
    imbalance = [float(found.max() / found.mean()) for found in map(loads, (0.0, 0.4, 1.2))]
    assert imbalance[0] == pytest.approx(1, abs=0.1)
    assert imbalance == sorted(imbalance)
    assert loads(1.2).min() > 0


def test_one_choice_follows_zipf_exactly() -> None:
    found = loads(1.2, experts=8, top_k=1, tokens=200_000).sort(descending=True).values
    ranks = torch.arange(1, 9, dtype=torch.float64)
    expected = ranks**-1.2 / (ranks**-1.2).sum()
    assert torch.allclose(found / found.sum(), expected, rtol=0.03)


def test_popular_experts_are_spread_over_the_numbering() -> None:
    halves = loads(1.2).reshape(2, 32).sum(dim=1)
    assert float(halves.max() / halves.sum()) < 0.7


def test_plugin_registers_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[str, object] = {}

    class RoutingSimulator:
        @classmethod
        def register_strategy(cls, name: str, strategy: object) -> None:
            known[name] = strategy

    place = "vllm.model_executor.layers.fused_moe.routing_simulator"
    parts = place.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(parts[end - 1]))
    monkeypatch.setattr(sys.modules[place], "RoutingSimulator", RoutingSimulator, raising=False)
    register()
    assert set(known) | {"uniform_random", "normal_routing"} == set(strategy_names())
