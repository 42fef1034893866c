"""Tiny models that the tests share."""

from __future__ import annotations

from dataclasses import replace

import torch

from hw_validation.llada.config import PRESETS, Architecture
from hw_validation.llada.distributed import SINGLE, Parallel
from hw_validation.llada.model import Llada
from hw_validation.llada.weights import pieces, place

CPU = torch.device("cpu")
DENSE = PRESETS["tiny-dense"]
MOE = PRESETS["tiny-moe"]


def named_weights(architecture: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint in memory: weights large enough that every operator shows in the logits, norms that are not 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for piece in pieces(architecture):
        values = torch.randn(piece.shape, generator=generator)
        weights[piece.name] = 1 + 0.2 * values if len(piece.shape) == 1 else 0.15 * values
    return weights


def build(architecture: Architecture, parallel: Parallel = SINGLE, seed: int = 0) -> Llada:
    """A float32 model on the CPU with `named_weights`."""
    model = Llada(architecture, CPU, torch.float32, parallel)
    weights = named_weights(architecture, seed)
    for piece in pieces(architecture):
        if piece.expert is None or parallel.local_expert(piece.expert, architecture.num_experts) is not None:
            place(model, piece, weights[piece.name])
    return model


def tokens_of(architecture: Architecture, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens [batch, length], a third of them masks."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(architecture.mask_token_id, (batch, length), generator=generator)
    return tokens.masked_fill(torch.rand(batch, length, generator=generator) < 1 / 3, architecture.mask_token_id)


def all_logits(model: Llada, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [batch, length, vocabulary] of every position, without a cache."""
    positions = torch.arange(tokens.shape[1])
    return model(tokens, positions, positions)


def grouped_query(architecture: Architecture) -> Architecture:
    """The same with half as many key and value heads."""
    return replace(architecture, num_kv_heads=architecture.num_heads // 2)
