"""The simulator's table of our engine's host calls against the engine: counted as it dispatches them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402, N812
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from hw_validation.llada.config import preset, with_layers  # noqa: E402
from hw_validation.llada.model import Llada  # noqa: E402
from hw_validation.llada.ops import choose_ops  # noqa: E402
from hw_validation.llada.sampler import Denoiser  # noqa: E402
from hw_validation.llada.settings import RunSettings  # noqa: E402
from hw_validation.llada.weights import fill_random  # noqa: E402
from moesim.costs.denoising import PROGRAMS  # noqa: E402

CPU = torch.device("cpu")
ONLY_ON_CPU = {"aten.aminmax.default", "aten._local_scalar_dense.default"}
"""one_hot checks its input there."""


class Calls(TorchDispatchMode):
    """Counts what reaches the dispatcher; an RMS norm is one operator on a GPU, though several on a CPU."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found = Counter()
        self.inside = False
        whole = F.rms_norm

        def rms_norm(*arguments):
            self.found["operators"] += 1
            self.inside = True
            try:
                return whole(*arguments)
            finally:
                self.inside = False

        monkeypatch.setattr(F, "rms_norm", rms_norm)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = str(function)
        if not self.inside and name not in ONLY_ON_CPU:
            self.found["small" if function.is_view or "empty" in name else "operators"] += 1
            self.found["waits"] += name == "aten.nonzero.default"
        return function(*arguments, **keywords or {})


def count(architecture, monkeypatch):
    model = Llada(architecture, CPU, torch.bfloat16)
    fill_random(model, 0)
    model.ops = choose_ops("loop", "torch", CPU, torch.bfloat16)
    positions = torch.arange(24)
    with monkeypatch.context() as patch, Calls(patch) as calls:
        model(torch.randint(0, 100, (1, 24)), positions, positions[:8])
    return calls.found


def of_a_layer(architecture, monkeypatch):
    both = [count(with_layers(architecture, layers), monkeypatch) for layers in (1, 2)]
    return Counter({name: both[1][name] - both[0][name] for name in both[1]})


def fields(calls):
    return {name: getattr(calls, name) for name in ("operators", "small", "waits")}


def test_a_dense_layer(monkeypatch):
    found = of_a_layer(preset("tiny-dense"), monkeypatch)
    table = PROGRAMS["moesim", "loop"].dense
    assert {name: found[name] for name in fields(table)} == fields(table)


def test_a_layer_with_a_loop_over_experts(monkeypatch):
    few, many = preset("tiny-moe"), replace(preset("tiny-moe"), num_experts=12)
    found = [of_a_layer(architecture, monkeypatch) for architecture in (few, many)]
    program = PROGRAMS["moesim", "loop"]
    for name, per_expert in fields(program.expert).items():
        assert found[1][name] - found[0][name] == per_expert * (many.num_experts - few.num_experts), name
        assert found[0][name] - few.num_experts * per_expert == getattr(program.sparse, name), name


def test_a_step_beside_its_layers(monkeypatch):
    """Sampling; and of the forward the embedding, the rows chosen, norm and head."""
    settings = RunSettings(prompt_len=8, generation_len=16, block_len=8, steps=8)

    def logits(_tokens, _positions, rows, _cache):
        return torch.zeros(1, len(rows), 128)

    def sampled(steps):
        denoiser = Denoiser(logits, replace(settings, steps=steps), 9)
        with monkeypatch.context() as patch, Calls(patch) as calls:
            denoiser.generate(torch.randint(0, 8, (1, 8)), Silent())
        return calls.found

    model = count(with_layers(preset("tiny-dense"), 1), monkeypatch)
    table = PROGRAMS["moesim", "loop"]
    eight, sixteen = sampled(8), sampled(16)
    for name in ("operators", "small"):
        a_step = (sixteen[name] - eight[name]) / 8
        beside = model[name] - getattr(table.dense, name)
        assert a_step + beside == pytest.approx(getattr(table.step, name), abs=1), name


class Silent:
    """A clock that notes nothing."""

    def begin(self):
        pass

    predicted = sampled = begin
