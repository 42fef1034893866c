"""What a LLaDA model is made of: the two published architectures, and any other read from its `config.json`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """Something the user asked for cannot be done; the message is one line and names the value."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a bidirectional transformer that predicts masked tokens.

    A dense model has `intermediate_size` and no experts; a Mixture-of-Experts model has `num_experts` experts of
    `expert_size` in every layer, `experts_per_token` of them for each token. Sizes are in elements.
    """

    name: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    mask_token_id: int
    rope_theta: float
    max_positions: int
    intermediate_size: int = 0
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    qk_norm: bool = False
    renormalize: bool = False
    norm_eps: float = 1e-5

    @property
    def is_moe(self) -> bool:
        """Whether the feed-forward layers are routed experts."""
        return self.num_experts > 0

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


PRESETS: dict[str, Architecture] = {
    "llada-8b": Architecture(
        name="llada-8b",
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        vocab_size=126464,
        mask_token_id=126336,
        rope_theta=500_000.0,
        max_positions=4096,
        intermediate_size=12288,
    ),
    "llada-moe-7b-a1b": Architecture(
        name="llada-moe-7b-a1b",
        hidden_size=2048,
        num_layers=16,
        num_heads=16,
        num_kv_heads=16,
        head_dim=128,
        vocab_size=157184,
        mask_token_id=156895,
        rope_theta=50_000.0,
        max_positions=8192,
        num_experts=64,
        experts_per_token=8,
        expert_size=1024,
        qk_norm=True,
    ),
    "tiny-dense": Architecture(
        name="tiny-dense",
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        vocab_size=128,
        mask_token_id=120,
        rope_theta=10_000.0,
        max_positions=256,
        intermediate_size=96,
    ),
    "tiny-moe": Architecture(
        name="tiny-moe",
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        vocab_size=128,
        mask_token_id=120,
        rope_theta=10_000.0,
        max_positions=256,
        num_experts=8,
        experts_per_token=2,
        expert_size=32,
        qk_norm=True,
    ),
}
"""Published architectures, and two tiny ones that run anywhere in a second."""

ALIASES = {"llada_8b": "llada-8b", "llada-moe-7b": "llada-moe-7b-a1b", "llada_moe_7b": "llada-moe-7b-a1b"}

_MOE_MASK_TOKEN = 156895
"""LLaDA-MoE's mask token, which its model card gives and its config.json leaves out."""

_SUPPORTED: dict[str, tuple[object, ...]] = {
    "include_bias": (False, None),
    "include_qkv_bias": (False, None),
    "attention_bias": (False, None),
    "weight_tying": (False, None),
    "tie_word_embeddings": (False, None),
    "clip_qkv": (None,),
    "rope_scaling": (None,),
    "alibi": (False, None),
    "scale_logits": (False, None),
    "input_emb_norm": (False, None),
    "attention_layer_norm": (False, None),
    "block_type": ("llama", None),
    "layer_norm_type": ("rms", None),
    "activation_type": ("silu", None),
    "hidden_act": ("silu", None),
    "partial_rotary_factor": (1, None),
    "shared_expert_intermediate_size": (None, 0),
    "moe_router_score_function": ("softmax", None),
    "moe_router_enable_expert_bias": (False, None),
    "routed_scaling_factor": (1, None),
}
"""Settings of a checkpoint that would change the computation, and the values that are computed here."""


def preset(name: str, num_layers: int | None = None) -> Architecture:
    """A published architecture by name, with the first `num_layers` layers if given."""
    known = ALIASES.get(name, name)
    if known not in PRESETS:
        near = difflib.get_close_matches(name, [*PRESETS, *ALIASES], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"model: unknown {name!r}{hint} (known: {', '.join(PRESETS)})")
    return with_layers(PRESETS[known], num_layers)


def with_layers(architecture: Architecture, num_layers: int | None) -> Architecture:
    """The same architecture with fewer layers, for cost per layer on a small device."""
    if num_layers is None:
        return architecture
    if not 1 <= num_layers <= architecture.num_layers:
        raise InputError(f"layers: {num_layers} is out of range, {architecture.name} has {architecture.num_layers}")
    return replace(architecture, num_layers=num_layers)


def from_checkpoint(folder: Path) -> Architecture:
    """The architecture that `folder/config.json` describes (LLaDA and LLaDA-MoE field names)."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"weights: {path} is missing; a snapshot folder of the Hugging Face hub is expected")
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"weights: {path} is not JSON ({error})") from error
    return from_hf_config(values, folder.name)


def from_hf_config(values: Mapping[str, Any], name: str) -> Architecture:
    """The architecture of a parsed `config.json`; settings that this engine does not compute are refused."""
    for key, allowed in _SUPPORTED.items():
        if values.get(key) not in allowed:
            raise InputError(f"config: {key} = {values[key]!r} is not supported (supported: {allowed[0]!r})")
    try:
        return _dense(values, name) if "d_model" in values else _moe(values, name)
    except KeyError as error:
        raise InputError(f"config: {error.args[0]} is missing from the config.json of {name}") from error


def _dense(values: Mapping[str, Any], name: str) -> Architecture:
    heads = values["n_heads"]
    return Architecture(
        name=name,
        hidden_size=values["d_model"],
        num_layers=values["n_layers"],
        num_heads=heads,
        num_kv_heads=values.get("n_kv_heads") or heads,
        head_dim=values["d_model"] // heads,
        vocab_size=values.get("embedding_size") or values["vocab_size"],
        mask_token_id=values["mask_token_id"],
        rope_theta=float(values["rope_theta"]),
        max_positions=values["max_sequence_length"],
        intermediate_size=values["mlp_hidden_size"],
        norm_eps=values.get("rms_norm_eps", 1e-5),
    )


def _moe(values: Mapping[str, Any], name: str) -> Architecture:
    layers, heads = values["num_hidden_layers"], values["num_attention_heads"]
    frequency = values.get("moe_layer_freq") or [1] * layers
    if frequency != 1 and any(entry != 1 for entry in frequency):
        raise InputError("config: moe_layer_freq has dense layers, which are not supported")
    return Architecture(
        name=name,
        hidden_size=values["hidden_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=values.get("num_key_value_heads") or heads,
        head_dim=values["hidden_size"] // heads,
        vocab_size=values["vocab_size"],
        mask_token_id=values.get("mask_token_id") or _MOE_MASK_TOKEN,
        rope_theta=float(values["rope_theta"]),
        max_positions=values["max_position_embeddings"],
        num_experts=values["num_experts"],
        experts_per_token=values["num_experts_per_tok"],
        expert_size=values["expert_intermediate_size"],
        qk_norm=bool(values.get("qk_layernorm")),
        renormalize=bool(values.get("norm_topk_prob")),
        norm_eps=values.get("rms_norm_eps", 1e-5),
    )
