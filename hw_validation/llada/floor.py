"""The least time a forward can take: its weights read once, or its arithmetic at the matrix units' achieved rate."""

from __future__ import annotations

from dataclasses import dataclass

from hw_validation.llada.config import Architecture
from hw_validation.llada.weights import pieces


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device achieves: bytes of memory and floating-point operations in a second."""

    bytes_per_s: float = 4.3e12
    flops_per_s: float = 790e12


@dataclass(frozen=True, slots=True)
class Floor:
    """A forward's unavoidable work: weights (all; and without the input embedding, of which few rows are read)."""

    weight_bytes: int
    weight_bytes_read: int
    flops: float

    def milliseconds(self, ceilings: Ceilings) -> float:
        """The larger of all weights over the bandwidth and the operations over their rate."""
        return max(self.weight_bytes / ceilings.bytes_per_s, self.flops / ceilings.flops_per_s) * 1e3


def count_parameters(architecture: Architecture) -> int:
    """All parameters, both embeddings included."""
    return sum(_size(piece.shape) for piece in pieces(architecture))


def forward_floor(architecture: Architecture, rows: int, total: int, block: int, bytes_per_weight: int) -> Floor:
    """The floor of one forward over all `total` positions of `rows` sequences, of which `block` are predicted.

    Operations count a multiplication and an addition as two; norms, rotations and softmax are left out.
    """
    parameters = count_parameters(architecture)
    embedding = architecture.vocab_size * architecture.hidden_size
    idle = architecture.num_experts - architecture.experts_per_token
    unused = architecture.num_layers * idle * 3 * architecture.hidden_size * architecture.expert_size
    layers = parameters - 2 * embedding - unused
    attention = 4 * architecture.num_layers * architecture.num_heads * architecture.head_dim * total
    flops = rows * (total * (2 * layers + attention) + block * 2 * embedding)
    return Floor(parameters * bytes_per_weight, (parameters - embedding) * bytes_per_weight, float(flops))


def _size(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product
