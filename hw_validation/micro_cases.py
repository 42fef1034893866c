"""What the microbenchmarks run: the operator shapes of the models, and loads on their experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from moesim.specs.model import GroupedQueryAttention, Model

EXPERT_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
GEMM_ROWS = (1, 8, 64, 256, 1024, 4096)
LM_HEAD_ROWS = 256
ZIPF = (0.0, 1.0)
DECODE_BATCHES = (1, 32, 256)
DECODE_CONTEXTS = (256, 2048)
PREFILLS = ((1, 512), (1, 4096), (8, 1024))
_MOST_CACHED_TOKENS = 600_000


class GemmCase(msgspec.Struct, frozen=True, kw_only=True):
    """`rows` tokens (m) times a weight of `out_features` (n) by `in_features` (k)."""

    model: str
    operator: str
    rows: int
    out_features: int
    in_features: int

    @property
    def key(self) -> str:
        """Name of the case."""
        return f"gemm/{self.model}/{self.operator}/{self.rows}"


class ExpertsCase(msgspec.Struct, frozen=True, kw_only=True):
    """The routed experts of one layer on `tokens` tokens; expert popularity falls as rank^-`zipf`."""

    model: str
    tokens: int
    zipf: float
    num_experts: int
    top_k: int
    hidden_size: int
    intermediate_size: int

    @property
    def key(self) -> str:
        """Name of the case."""
        return f"experts/{self.model}/{self.tokens}/zipf{self.zipf:g}"


class AttentionCase(msgspec.Struct, frozen=True, kw_only=True):
    """`batch` sequences with `new_tokens` queries each over `context` tokens, their own included."""

    batch: int
    new_tokens: int
    context: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def key(self) -> str:
        """Name of the case."""
        heads = f"{self.num_heads}q{self.num_kv_heads}kv{self.head_dim}"
        return f"attention/{heads}/{self.batch}x{self.new_tokens}/{self.context}"


def gemm_cases(model: Model) -> Iterator[GemmCase]:
    """Every dense matrix product of `model`, at every number of rows."""
    for operator, (out_features, in_features) in gemm_shapes(model).items():
        for rows in GEMM_ROWS:
            if operator != "lm_head" or rows <= LM_HEAD_ROWS:
                yield GemmCase(
                    model=model.name, operator=operator, rows=rows, out_features=out_features, in_features=in_features
                )


def gemm_shapes(model: Model) -> dict[str, tuple[int, int]]:
    """Operator to (out_features, in_features), fused as inference engines fuse them."""
    hidden, attention = model.hidden_size, model.attention
    if isinstance(attention, GroupedQueryAttention):
        width = attention.num_heads * attention.head_dim
        both = 2 * attention.num_kv_heads * attention.head_dim
        shapes = {"qkv": (width + both, hidden), "attention_out": (hidden, width)}
    else:
        latent = attention.kv_lora_rank + attention.qk_rope_head_dim
        query = attention.num_heads * (attention.qk_nope_head_dim + attention.qk_rope_head_dim)
        shapes = {
            "latent_down": (attention.q_lora_rank + latent, hidden),
            "query_up": (query, attention.q_lora_rank),
            "attention_out": (hidden, attention.num_heads * attention.v_head_dim),
        }
    shapes |= _feed_forward_shapes(model)
    return shapes | {"lm_head": (model.vocab_size, hidden)}


def _feed_forward_shapes(model: Model) -> dict[str, tuple[int, int]]:
    hidden, shapes = model.hidden_size, dict[str, tuple[int, int]]()
    if model.moe:
        shapes["router"] = (model.moe.num_experts, hidden)
    shared = model.moe.shared_intermediate_size if model.moe else 0
    for name, width in (("shared", shared), ("dense", model.dense_intermediate_size if model.num_dense_layers else 0)):
        if width:
            shapes |= {f"{name}_up": (2 * width, hidden), f"{name}_down": (hidden, width)}
    return shapes


def experts_cases(model: Model) -> Iterator[ExpertsCase]:
    """The routed experts of `model` at every number of tokens, evenly and unevenly loaded."""
    if model.moe is None:
        return
    for tokens in EXPERT_TOKENS:
        for zipf in ZIPF if tokens >= 8 else ZIPF[:1]:
            yield ExpertsCase(
                model=model.name,
                tokens=tokens,
                zipf=zipf,
                num_experts=model.moe.num_experts,
                top_k=model.moe.top_k,
                hidden_size=model.hidden_size,
                intermediate_size=model.moe.intermediate_size,
            )


def attention_cases(models: Sequence[Model]) -> Iterator[AttentionCase]:
    """Decode and prefill attention of every head layout among `models`, each layout once."""
    layouts = {
        (attention.num_heads, attention.num_kv_heads, attention.head_dim)
        for attention in (model.attention for model in models)
        if isinstance(attention, GroupedQueryAttention)
    }
    for heads, kv_heads, head_dim in sorted(layouts):
        decodes = [(batch, 1, context) for batch in DECODE_BATCHES for context in DECODE_CONTEXTS]
        for batch, new, context in decodes + [(batch, new, new) for batch, new in PREFILLS]:
            if batch * context <= _MOST_CACHED_TOKENS:
                yield AttentionCase(
                    batch=batch,
                    new_tokens=new,
                    context=context,
                    num_heads=heads,
                    num_kv_heads=kv_heads,
                    head_dim=head_dim,
                )


def draw_experts(case: ExpertsCase, seed: int) -> NDArray[np.int64]:
    """Distinct experts of each token, [tokens, top_k], drawn by popularity (Gumbel noise on its logarithm)."""
    draw = np.random.default_rng([seed, case.tokens, case.num_experts])
    popularity = np.random.default_rng(0).permutation(-case.zipf * np.log1p(np.arange(case.num_experts)))
    scores = popularity + draw.gumbel(size=(case.tokens, case.num_experts))
    return np.argpartition(scores, -case.top_k, axis=1)[:, -case.top_k :]
