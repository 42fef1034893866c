"""The shipped models: counts against published checkpoints, cache and weight bytes, sources, lookups."""

from __future__ import annotations

import msgspec
import pytest

from moesim.errors import InputError
from moesim.specs.catalog import get_model, list_models
from moesim.specs.model import (
    MultiHeadLatentAttention,
    count_parameters,
    expert_params,
    kv_bytes_per_token,
    weight_bytes,
)

_NOT_ARCHITECTURE = {"name", "huggingface_id", "aliases", "notes", "sources"}
_MINIMAX_BLOCK_SCALES = 13_880_064

# Weights in the published checkpoint: Hugging Face API, GGUF metadata or a public audit of the file headers.
CHECKPOINT_PARAMS = {
    "deepseek-r1": 671_026_419_200,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-120b": 116_829_156_672,
    "kimi-k2": 1_026_408_232_448,
    "kimi-k2.5": 1_026_408_232_448,
    "llada2.0-mini": 16_255_643_392,  # Ling-mini-2.0, the same architecture
    "minimax-m2.5": 228_703_644_928 - _MINIMAX_BLOCK_SCALES,
    "mixtral-8x7b": 46_702_792_704,
    "olmoe-1b-7b": 6_919_161_856,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2-57b-a14b": 57_408_658_944,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
}
# No exact published count: weights of every tensor of the architecture, added up by hand.
COUNTED_PARAMS = {
    "dbrx": 131_596_523_520,
    "llada-8b": 8_015_581_184,
    "llada-moe-7b": 7_356_880_896,
}
KV_BYTES_PER_TOKEN = {
    "dbrx": 163_840,
    "deepseek-r1": 70_272,
    "deepseek-v3": 70_272,
    "gpt-oss-120b": 73_728,
    "kimi-k2": 70_272,
    "kimi-k2.5": 70_272,
    "llada-8b": 524_288,
    "llada-moe-7b": 131_072,
    "llada2.0-mini": 40_960,
    "minimax-m2.5": 253_952,
    "mixtral-8x7b": 131_072,
    "olmoe-1b-7b": 131_072,
    "qwen1.5-moe-a2.7b": 196_608,
    "qwen2-57b-a14b": 57_344,
    "qwen3-235b-a22b": 192_512,
    "qwen3-30b-a3b": 98_304,
}
# Bytes of all tensors of the published checkpoint (safetensors index or file headers).
CHECKPOINT_BYTES = {
    "gpt-oss-120b": 65_248_815_744,
    "kimi-k2": 1_029_173_256_720,
    "kimi-k2.5": 594_205_920_512,  # the int4 text model, published as Kimi-K2-Thinking
    "mixtral-8x7b": 93_405_585_408,
    "qwen3-235b-a22b": 470_187_269_120,
}
MODELS = sorted(list_models())


def test_every_model_has_its_expected_counts():
    assert set(MODELS) == set(CHECKPOINT_PARAMS) | set(COUNTED_PARAMS) == set(KV_BYTES_PER_TOKEN)


@pytest.mark.parametrize(("name", "expected"), sorted((CHECKPOINT_PARAMS | COUNTED_PARAMS).items()))
def test_total_parameters_are_exact(name: str, expected: int):
    assert count_parameters(get_model(name)).total == expected


@pytest.mark.parametrize("name", MODELS)
def test_published_totals_agree_within_their_rounding(name: str):
    """Cards round 7.36 B to "7B" and 1.026 T to "1T": 6 percent covers them; the rest lie within 2."""
    model = get_model(name)
    loose = name in {"llada-moe-7b", "kimi-k2", "kimi-k2.5"}
    total = count_parameters(model).total
    assert total == pytest.approx(model.published["total_params"], rel=0.06 if loose else 0.02)


@pytest.mark.parametrize("name", MODELS)
def test_published_active_agrees_under_one_convention(name: str):
    """Print counts the embedding tables or not; one of the conventions must lie within 3 percent."""
    model = get_model(name)
    counts = count_parameters(model)
    conventions = (
        counts.active,
        counts.active_without_input_embedding,
        counts.active_without_input_embedding - counts.lm_head,
    )
    published = model.published["active_params"]
    assert min(abs(active - published) for active in conventions) < 0.03 * published


@pytest.mark.parametrize("name", MODELS)
def test_active_is_total_less_the_experts_that_rest(name: str):
    model = get_model(name)
    counts = count_parameters(model)
    resting = 0
    if model.moe is not None:
        resting = model.num_moe_layers * (model.moe.num_experts - model.moe.top_k) * expert_params(model)
    assert counts.total - counts.active == resting
    assert counts.active - counts.active_without_input_embedding == counts.embedding


def test_tied_embeddings_are_counted_once():
    model = get_model("olmoe-1b-7b")
    tied = msgspec.structs.replace(model, tied_embeddings=True)
    assert count_parameters(model).total - count_parameters(tied).total == model.vocab_size * model.hidden_size


@pytest.mark.parametrize(("name", "expected"), sorted(KV_BYTES_PER_TOKEN.items()))
def test_kv_bytes_per_token_are_exact(name: str, expected: int):
    model = get_model(name)
    assert kv_bytes_per_token(model) == expected
    assert kv_bytes_per_token(model, "fp8") == expected / 2


def test_latent_cache_is_rank_plus_rope():
    model = get_model("deepseek-v3")
    assert isinstance(model.attention, MultiHeadLatentAttention)
    assert kv_bytes_per_token(model) == 61 * (512 + 64) * 2


@pytest.mark.parametrize(("name", "expected"), sorted(CHECKPOINT_BYTES.items()))
def test_weight_bytes_match_the_checkpoint(name: str, expected: int):
    """Within 0.1 percent: fp32 selection biases and bf16 expert biases are stored wider than their part."""
    assert weight_bytes(get_model(name)) == pytest.approx(expected, rel=1e-3)


def test_bf16_checkpoints_hold_two_bytes_a_weight():
    assert weight_bytes(get_model("mixtral-8x7b")) == 93_405_585_408
    assert weight_bytes(get_model("qwen3-235b-a22b")) == 470_187_269_120


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_field_names_its_source(name: str):
    model = get_model(name)
    defaults = {field.name: field.default for field in msgspec.structs.fields(model)}
    stated = {name for name in model.__struct_fields__ if getattr(model, name) != defaults[name]}
    assert stated - _NOT_ARCHITECTURE == set(model.sources)
    assert all(source.strip() for source in model.sources.values())


@pytest.mark.parametrize("name", MODELS)
def test_lookup_by_alias_and_huggingface_id_in_any_case(name: str):
    model = get_model(name)
    for key in (model.huggingface_id, model.huggingface_id.rsplit("/", 1)[-1], *model.aliases):
        assert get_model(key.upper()) is model


def test_keys_are_unique_over_all_models():
    owners: dict[str, str] = {}
    for model in list_models().values():
        keys = {model.name, model.huggingface_id, model.huggingface_id.rsplit("/", 1)[-1], *model.aliases}
        for key in {key.lower() for key in keys}:
            assert owners.setdefault(key, model.name) == model.name


@pytest.mark.parametrize("name", ["Qwen/Qwen3.5-397B-A17B", "glm-5", "zai-org/GLM-5"])
def test_unsupported_models_are_refused_with_the_reason(name: str):
    with pytest.raises(InputError, match=r"(linear|sparse) attention"):
        get_model(name)
