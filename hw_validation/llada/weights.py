"""Weights from a Hugging Face snapshot, or random ones of the same architecture; sharded while they are placed."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hw_validation.llada.config import Architecture, InputError

if TYPE_CHECKING:
    from hw_validation.llada.model import Llada

_STD = 0.02
"""Standard deviation of random weights: the models' own initializer range."""
_EMBEDDING_STD = 4.0
"""Of random embeddings. With 0.02 the attention's mean over all positions drowns what a token is after two layers:
all positions then go to the same experts (8 to 28 of 64 touched, measured), and a forward skips most weights."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of a checkpoint and its place in the model.

    It becomes rows `row` onwards of `parameter` (of expert `expert`); `split` is the dimension that tensor
    parallelism shards, or None for tensors that every rank holds.
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    row: int = 0
    split: int | None = None
    expert: int | None = None


def pieces(architecture: Architecture) -> Iterator[Piece]:
    """Every tensor of the published checkpoint of this architecture, by its published name."""
    table = _MOE_NAMES if architecture.is_moe else _DENSE_NAMES
    vocabulary, hidden = architecture.vocab_size, architecture.hidden_size
    yield Piece(table["embedding"], (vocabulary, hidden), "embedding")
    for layer in range(architecture.num_layers):
        prefix = f"{table['layers']}.{layer}."
        yield from _layer_pieces(architecture, prefix, f"layers.{layer}.", table)
    yield Piece(table["final_norm"], (hidden,), "final_norm")
    yield Piece(table["head"], (vocabulary, hidden), "head", split=0)


_MOE_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "layers": "model.layers",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
}
_DENSE_NAMES = {
    "embedding": "model.transformer.wte.weight",
    "layers": "model.transformer.blocks",
    "final_norm": "model.transformer.ln_f.weight",
    "head": "model.transformer.ff_out.weight",
    "input_norm": "attn_norm",
    "post_norm": "ff_norm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "out": "attn_out",
}


def _layer_pieces(architecture: Architecture, prefix: str, owner: str, table: dict[str, str]) -> Iterator[Piece]:
    hidden, dim = architecture.hidden_size, architecture.head_dim
    queries, keys = architecture.num_heads * dim, architecture.num_kv_heads * dim
    for norm in ("input_norm", "post_norm"):
        yield Piece(f"{prefix}{table[norm]}.weight", (hidden,), f"{owner}{norm}")
    rows = 0
    for part, size in (("q", queries), ("k", keys), ("v", keys)):
        yield Piece(f"{prefix}{table[part]}.weight", (size, hidden), f"{owner}qkv", row=rows, split=0)
        rows += size
    yield Piece(f"{prefix}{table['out']}.weight", (hidden, queries), f"{owner}out", split=1)
    if architecture.qk_norm:
        for row, part in enumerate("qk"):
            yield Piece(f"{prefix}self_attn.{part}_norm.weight", (dim,), f"{owner}qk_norm", row=row)
    if not architecture.is_moe:
        names = (f"{prefix}ff_proj", f"{prefix}up_proj", f"{prefix}ff_out")
        yield from _swiglu_pieces(names, owner, hidden, architecture.intermediate_size, None)
        return
    yield Piece(f"{prefix}mlp.gate.weight", (architecture.num_experts, hidden), f"{owner}router")
    for expert in range(architecture.num_experts):
        stem = f"{prefix}mlp.experts.{expert}."
        names = (f"{stem}gate_proj", f"{stem}up_proj", f"{stem}down_proj")
        yield from _swiglu_pieces(names, owner, hidden, architecture.expert_size, expert)


def _swiglu_pieces(
    names: tuple[str, str, str], owner: str, hidden: int, width: int, expert: int | None
) -> Iterator[Piece]:
    gate, up, down = names
    yield Piece(f"{gate}.weight", (width, hidden), f"{owner}gate_up", split=0, expert=expert)
    yield Piece(f"{up}.weight", (width, hidden), f"{owner}gate_up", row=width, split=0, expert=expert)
    yield Piece(f"{down}.weight", (hidden, width), f"{owner}down", split=1, expert=expert)


def is_local(model: Llada, piece: Piece) -> bool:
    """Whether any of the tensor belongs on this rank."""
    if piece.expert is None:
        return True
    return model.parallel.local_expert(piece.expert, model.architecture.num_experts) is not None


def place(model: Llada, piece: Piece, tensor: Tensor) -> None:
    """Copy this rank's share of `tensor` (whole, shaped as the piece says) into the model."""
    parallel = model.parallel
    target = model.get_parameter(piece.parameter)
    shards = parallel.tp
    if piece.expert is not None:
        target = target[parallel.local_expert(piece.expert, model.architecture.num_experts)]
        shards = parallel.expert_tp
    if piece.split is not None and shards > 1:
        tensor = tensor.chunk(shards, dim=piece.split)[parallel.tp_rank]
    if target.dim() > tensor.dim():
        tensor = tensor.unsqueeze(0)
    first = piece.row // shards if piece.split == 0 else piece.row
    target[first : first + tensor.shape[0]].copy_(tensor)


@torch.no_grad()
def fill_random(model: Llada, seed: int) -> None:
    """Normal weights of standard deviation 0.02 (embeddings: 4) and norms of 1.

    Each tensor's values depend on its name, on `seed` and on the kind of device, but not on how the model is sharded.
    """
    for piece in pieces(model.architecture):
        if not is_local(model, piece):
            continue
        if len(piece.shape) == 1:
            place(model, piece, torch.ones(piece.shape, device=model.device))
            continue
        generator = torch.Generator(model.device).manual_seed(zlib.crc32(f"{seed}/{piece.name}".encode()))
        std = _EMBEDDING_STD if piece.parameter == "embedding" else _STD
        values = torch.empty(piece.shape, device=model.device).normal_(0.0, std, generator=generator)
        place(model, piece, values)


@torch.no_grad()
def load_checkpoint(model: Llada, folder: Path) -> None:
    """Fill the model from the safetensors shards in `folder`; a missing or misshapen tensor is an error.

    Tensors of layers that the model leaves out are not read.
    """
    from safetensors import safe_open

    wanted = {piece.name: piece for piece in pieces(model.architecture) if is_local(model, piece)}
    for shard, names in _shards(folder, wanted).items():
        with safe_open(folder / shard, framework="pt", device=str(model.device)) as file:
            stored = set(file.keys())
            for name in names:
                if name not in stored:
                    raise InputError(f"weights: {shard} in {folder} has no tensor {name}")
                tensor = file.get_tensor(name)
                if tuple(tensor.shape) != wanted[name].shape:
                    raise InputError(
                        f"weights: {name} has shape {tuple(tensor.shape)}, {wanted[name].shape} is expected"
                    )
                place(model, wanted[name], tensor)


def _shards(folder: Path, wanted: dict[str, Piece]) -> dict[str, list[str]]:
    """Shard file names and the wanted tensors in each."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        where: dict[str, str] = json.loads(index.read_text())["weight_map"]
    elif (folder / "model.safetensors").is_file():
        where = dict.fromkeys(wanted, "model.safetensors")
    else:
        raise InputError(f"weights: {folder} holds neither model.safetensors nor model.safetensors.index.json")
    shards: dict[str, list[str]] = {}
    for name in wanted:
        if name not in where:
            raise InputError(f"weights: {folder} has no tensor {name}")
        shards.setdefault(where[name], []).append(name)
    return shards
