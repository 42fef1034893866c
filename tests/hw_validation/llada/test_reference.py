"""The forward against independent implementations: transformers' Llama, OLMoE and Qwen3-MoE, made bidirectional."""

# ruff: noqa: E402 - what is imported depends on what is installed

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.hw_validation.llada.models import DENSE, MOE, all_logits, build, grouped_query, named_weights, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore")


def common(architecture):
    return {
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "max_position_embeddings": architecture.max_positions,
        "rms_norm_eps": architecture.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": architecture.rope_theta},
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
        "pad_token_id": 0,
    }


def moe_options(architecture):
    return {
        "num_experts": architecture.num_experts,
        "num_experts_per_tok": architecture.experts_per_token,
        "norm_topk_prob": architecture.renormalize,
    }


def bidirectional(model, tokens):
    """Logits with an additive mask of zeros: every position sees every other."""
    batch, length = tokens.shape
    mask = torch.zeros(batch, 1, length, length)
    with torch.no_grad():
        return model.eval()(input_ids=tokens, attention_mask=mask, use_cache=False).logits


def dense_names(weights):
    """LLaDA-8B's names as Llama's."""
    rules = (
        ("model.transformer.wte", "model.embed_tokens"),
        ("model.transformer.ln_f", "model.norm"),
        ("model.transformer.ff_out", "lm_head"),
        ("model.transformer.blocks", "model.layers"),
        ("attn_norm", "input_layernorm"),
        ("ff_norm", "post_attention_layernorm"),
        ("attn_out", "self_attn.o_proj"),
        ("ff_proj", "mlp.gate_proj"),
        ("up_proj", "mlp.up_proj"),
        ("ff_out", "mlp.down_proj"),
        (".q_proj", ".self_attn.q_proj"),
        (".k_proj", ".self_attn.k_proj"),
        (".v_proj", ".self_attn.v_proj"),
    )

    def rename(name):
        for old, new in rules:
            name = name.replace(old, new)
        return name

    return {rename(name): tensor for name, tensor in weights.items()}


def stacked_experts(weights, architecture):
    """LLaDA-MoE's weights with each layer's experts stacked, as transformers 5 holds them."""
    stacked = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    for layer in range(architecture.num_layers):
        stem = f"model.layers.{layer}.mlp.experts."

        def stack(part, stem=stem):
            return torch.stack([weights[f"{stem}{e}.{part}.weight"] for e in range(architecture.num_experts)])

        stacked[f"{stem}gate_up_proj"] = torch.cat((stack("gate_proj"), stack("up_proj")), dim=1)
        stacked[f"{stem}down_proj"] = stack("down_proj")
    return stacked


class PerHeadNorm(torch.nn.Module):
    """OLMoE normalises the whole query; LLaDA-MoE each head."""

    def __init__(self, norm_type, head_dim, eps):
        super().__init__()
        self.norm = norm_type(head_dim, eps=eps)
        self.head_dim = head_dim

    def forward(self, projected):
        return self.norm(projected.unflatten(-1, (-1, self.head_dim))).flatten(-2)


@pytest.mark.parametrize("architecture", [DENSE, grouped_query(DENSE)], ids=["mha", "gqa"])
def test_dense_equals_llama(architecture):
    config = transformers.LlamaConfig(intermediate_size=architecture.intermediate_size, **common(architecture))
    reference = transformers.LlamaForCausalLM(config)
    reference.load_state_dict(dense_names(named_weights(architecture)))
    tokens = tokens_of(architecture, 2, 37)
    torch.testing.assert_close(
        all_logits(build(architecture), tokens), bidirectional(reference, tokens), rtol=1e-4, atol=1e-4
    )


def test_causal_llama_differs():
    config = transformers.LlamaConfig(intermediate_size=DENSE.intermediate_size, **common(DENSE))
    reference = transformers.LlamaForCausalLM(config)
    reference.load_state_dict(dense_names(named_weights(DENSE)))
    tokens = tokens_of(DENSE, 1, 37)
    with torch.no_grad():
        causal = reference.eval()(input_ids=tokens).logits
    assert (all_logits(build(DENSE), tokens)[:, 0] - causal[:, 0]).abs().max() > 0.01


@pytest.mark.parametrize("renormalize", [False, True])
def test_moe_equals_qwen3_moe(renormalize):
    architecture = replace(MOE, renormalize=renormalize)
    config = transformers.Qwen3MoeConfig(
        moe_intermediate_size=architecture.expert_size,
        intermediate_size=architecture.expert_size,
        **common(architecture),
        **moe_options(architecture),
    )
    reference = transformers.Qwen3MoeForCausalLM(config)
    reference.load_state_dict(stacked_experts(named_weights(architecture), architecture))
    tokens = tokens_of(architecture, 2, 37)
    torch.testing.assert_close(
        all_logits(build(architecture), tokens), bidirectional(reference, tokens), rtol=1e-4, atol=1e-4
    )


def test_moe_equals_olmoe_with_norms_by_head():
    config = transformers.OlmoeConfig(intermediate_size=MOE.expert_size, **common(MOE), **moe_options(MOE))
    reference = transformers.OlmoeForCausalLM(config)
    weights = stacked_experts(named_weights(MOE), MOE)
    for layer in reference.model.layers:
        norm_type = type(layer.input_layernorm)
        layer.self_attn.q_norm = PerHeadNorm(norm_type, MOE.head_dim, MOE.norm_eps)
        layer.self_attn.k_norm = PerHeadNorm(norm_type, MOE.head_dim, MOE.norm_eps)
    reference.load_state_dict(
        {
            name.replace("_norm.weight", "_norm.norm.weight") if "self_attn" in name else name: value
            for name, value in weights.items()
        }
    )
    tokens = tokens_of(MOE, 2, 37)
    torch.testing.assert_close(all_logits(build(MOE), tokens), bidirectional(reference, tokens), rtol=1e-4, atol=1e-4)
