"""Memory of a rank: shards add up to the checkpoint, the pool is what is left, and real servers agree."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.placement.fit import fits, require_fit, smallest_tensor_parallel
from moesim.placement.memory import kv_bytes_per_token_per_rank, plan_memory, weights_bytes_per_rank
from moesim.specs.catalog import get_hardware, get_model
from moesim.specs.deployment import Deployment
from moesim.specs.hardware import make_cluster
from moesim.specs.model import kv_bytes_per_token, weight_bytes

SEED = Path(__file__).parents[3] / "shared" / "reference" / "seed_measurements"
MODELS = ["mixtral-8x7b", "qwen2-57b-a14b", "dbrx", "qwen3-235b-a22b", "olmoe-1b-7b", "deepseek-v3", "gpt-oss-120b"]


def deploy(tp: int = 1, dp: int = 1, ep: int = 1, pp: int = 1, **settings: object) -> Deployment:
    return Deployment(
        tensor_parallel_size=tp, data_parallel_size=dp, expert_parallel_size=ep, pipeline_parallel_size=pp,
        **settings,
    )  # fmt: skip  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", MODELS)
def test_one_rank_holds_the_checkpoint(name: str):
    model = get_model(name)
    assert weights_bytes_per_rank(model, deploy()) == pytest.approx(weight_bytes(model), rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sizes", [{"tp": 8}, {"tp": 4}, {"tp": 8, "ep": 8}, {"tp": 2, "dp": 4, "ep": 8}])
def test_shards_hold_at_least_the_checkpoint_and_little_more(name: str, sizes: dict[str, int]):
    """Norms, routers and MLA's latent projections are on every rank; data-parallel ranks repeat attention."""
    model, deployment = get_model(name), deploy(**sizes)
    lone = deploy(tp=sizes["tp"], ep=sizes.get("ep", 1) // sizes.get("dp", 1) or 1)
    held = weights_bytes_per_rank(model, deployment) * deployment.num_ranks
    assert held >= weight_bytes(model) * (1 - 1e-9)
    assert weights_bytes_per_rank(model, lone) * lone.num_ranks <= weight_bytes(model) * 1.05


def test_expert_parallel_ranks_hold_whole_experts_and_all_attention():
    model = get_model("mixtral-8x7b")
    spread = weights_bytes_per_rank(model, deploy(dp=8, ep=8))
    sharded = weights_bytes_per_rank(model, deploy(tp=8))
    assert sharded < spread < weight_bytes(model) / 4


def test_kv_heads_are_sharded_then_replicated_and_latents_are_replicated():
    mixtral, deepseek = get_model("mixtral-8x7b"), get_model("deepseek-v3")
    whole = kv_bytes_per_token(mixtral)
    for tp, share in ((1, 1), (2, 2), (8, 8), (16, 8)):
        assert kv_bytes_per_token_per_rank(mixtral, deploy(tp=tp)) == whole / share
    for tp in (1, 8, 16):
        assert kv_bytes_per_token_per_rank(deepseek, deploy(tp=tp)) == kv_bytes_per_token(deepseek)
    half = kv_bytes_per_token_per_rank(mixtral, deploy(kv_cache_dtype="fp8"))
    assert half == whole / 2


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(MODELS),
    card=st.sampled_from(["a100-80gb", "h200", "mi300x", "b200"]),
    tp=st.sampled_from([1, 2, 4, 8]),
    share=st.floats(0.3, 1.0),
    seqs=st.sampled_from([1, 256, 1024]),
)
def test_parts_fill_what_the_engine_may_take(name: str, card: str, tp: int, share: float, seqs: int):
    accelerator = get_hardware(card)
    plan = plan_memory(get_model(name), deploy(tp=tp, max_num_seqs=seqs, gpu_memory_utilization=share), accelerator)
    budget = share * accelerator.hbm_bytes_visible
    parts = plan.weights_bytes + plan.activation_bytes + plan.runtime_bytes + plan.kv_pool_bytes
    assert parts == pytest.approx(budget)
    if plan.kv_pool_bytes > 0:
        assert plan.reserved_bytes == pytest.approx(budget)
        assert 0 <= plan.kv_pool_bytes - plan.kv_tokens * plan.kv_bytes_per_token < 16 * plan.kv_bytes_per_token
    else:
        assert not fits(plan, 1)


def test_more_sequences_and_tokens_leave_a_smaller_pool():
    card, model = get_hardware("h200"), get_model("mixtral-8x7b")
    pools = [plan_memory(model, deploy(tp=2, max_num_batched_tokens=n), card).kv_pool_bytes for n in (512, 8192, 32768)]
    assert pools == sorted(pools, reverse=True)


@pytest.mark.parametrize(
    ("name", "card", "count"),
    [("mixtral-8x7b", "a100-80gb", 2), ("mixtral-8x7b", "h200", 1), ("deepseek-v3", "h200", 8), ("dbrx", "h100", 4)],
)
def test_smallest_count_is_what_people_use(name: str, card: str, count: int):
    """Mixtral bf16 needs two 80 GB cards, DeepSeek-V3 fp8 eight H200, DBRX bf16 four H100 (as they are served)."""
    model, cluster = get_model(name), make_cluster(get_hardware(card), 1)
    assert smallest_tensor_parallel(model, deploy(), cluster, 1024) == count
    plan = plan_memory(model, deploy(tp=count), cluster.accelerator)
    assert fits(plan, 1024)
    if count > 1:
        with pytest.raises(InputError, match=rf"smallest tensor-parallel count that fits is {count} x {card}"):
            require_fit(model, deploy(), cluster, 1024)


def test_quantised_experts_shrink_the_weights():
    model = get_model("mixtral-8x7b")
    plain, fp8, int4 = (weights_bytes_per_rank(model, deploy(quantization=q)) for q in ("none", "fp8", "int4"))
    assert 0.5 * plain < fp8 < 0.52 * plain
    assert 0.25 * plain < int4 < 0.32 * plain
    assert msgspec.structs.replace(deploy(), quantization="fp8") == deploy(quantization="fp8")


@pytest.mark.reference
def test_reservation_of_measured_servers():
    """What the driver showed in use is the 0.9 that vLLM reserves, within 6 %."""
    path = SEED / "serving.csv"
    if not path.exists():
        pytest.skip("no shared reference data beside the checkout")
    seen = 0
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        card = {"A100-80GB": "a100-80gb", "A100-40GB": "a100-40gb"}.get(row["gpu_model"])
        if not row["gpu_mem_used_mib"] or card is None:
            continue
        plan = plan_memory(get_model("olmoe-1b-7b"), deploy(), get_hardware(card))
        assert plan.reserved_bytes == pytest.approx(float(row["gpu_mem_used_mib"]) * 2**20, rel=0.06)
        seen += 1
    assert seen > 50
