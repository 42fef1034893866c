"""Weights: snapshots with the published names, random ones, and what is wrong with a folder."""

# ruff: noqa: E402 - what is imported depends on what is installed

from __future__ import annotations

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from hw_validation.llada.config import InputError
from hw_validation.llada.model import Llada
from hw_validation.llada.weights import fill_random, load_checkpoint
from tests.hw_validation.llada.models import CPU, DENSE, MOE, all_logits, build, named_weights, tokens_of


def save(folder, weights, shards):
    """A snapshot of `shards` files with its index."""
    names = sorted(weights)
    where = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(names)}
    for shard in set(where.values()):
        safetensors.save_file({name: weights[name] for name in names if where[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("architecture", [DENSE, MOE], ids=["dense", "moe"])
def test_snapshot_equals_the_weights_it_holds(architecture, tmp_path):
    save(tmp_path, named_weights(architecture), shards=3)
    model = Llada(architecture, CPU, torch.float32)
    load_checkpoint(model, tmp_path)
    tokens = tokens_of(architecture, 1, 20)
    assert torch.equal(all_logits(model, tokens), all_logits(build(architecture), tokens))


def test_fewer_layers_read_fewer_tensors(tmp_path):
    save(tmp_path, named_weights(MOE), shards=2)
    model = Llada(replace(MOE, num_layers=1), CPU, torch.float32)
    load_checkpoint(model, tmp_path)
    assert torch.equal(model.layers[0].qkv, build(MOE).layers[0].qkv)


def test_wrong_snapshots_are_named(tmp_path):
    model = Llada(DENSE, CPU, torch.float32)
    with pytest.raises(InputError, match="neither"):
        load_checkpoint(model, tmp_path)
    weights = named_weights(DENSE)
    norm = weights.pop("model.transformer.ln_f.weight")
    save(tmp_path, weights, shards=1)
    with pytest.raises(InputError, match=r"no tensor model\.transformer\.ln_f\.weight"):
        load_checkpoint(model, tmp_path)
    save(tmp_path, {**weights, "model.transformer.ln_f.weight": norm[:-1].clone()}, shards=1)
    with pytest.raises(InputError, match="weight has shape"):
        load_checkpoint(model, tmp_path)


def test_random_weights_depend_on_the_seed_alone():
    one, same, other = (Llada(MOE, CPU, torch.float32) for _ in range(3))
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        fill_random(model, seed)
    tokens = tokens_of(MOE, 1, 20)
    assert torch.equal(all_logits(one, tokens), all_logits(same, tokens))
    assert not torch.equal(all_logits(one, tokens), all_logits(other, tokens))
    assert one.layers[0].gate_up.std().item() == pytest.approx(0.02, rel=0.05)
    assert (one.layers[1].qk_norm == 1).all()
