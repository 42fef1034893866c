"""JSON contracts: keys letter by letter, finite numbers, and the README that documents them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from moesim.cli.main import make_command
from tests.cli.conftest import Run

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SMALL = "--model olmoe-1b-7b --hardware h200 --num-prompts 24 --input-len 64 --output-len 16 --json"


class SpreadJson(msgspec.Struct, forbid_unknown_fields=True):
    mean: float
    p50: float
    p90: float
    p99: float


class MemoryJson(msgspec.Struct, forbid_unknown_fields=True):
    visible_bytes: float
    reserved_bytes: float
    weights_bytes: float
    activation_bytes: float
    runtime_bytes: float
    kv_pool_bytes: float
    kv_bytes_per_token: float
    kv_pool_tokens: int


class ImbalanceJson(msgspec.Struct):
    tokens_per_step: float
    distinct_experts: float
    gini: float
    cv: float
    max_over_mean: float
    rank_max_over_mean: float


class OperatorJson(msgspec.Struct, forbid_unknown_fields=True):
    operator: str
    seconds: float
    share: float


class BreakdownJson(msgspec.Struct, forbid_unknown_fields=True):
    total_s: float
    operators: list[OperatorJson]
    limits: dict[str, float]


class ParameterSetJson(msgspec.Struct):
    name: str
    calibrated: bool


class UtilizationJson(msgspec.Struct, forbid_unknown_fields=True):
    gpu_busy: float
    hbm_bandwidth: float
    flops: float
    network_time: float


class SimulateJson(msgspec.Struct):
    schema_version: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    requests_per_s: float
    output_tokens_per_s_per_gpu: float
    ttft_ms: SpreadJson
    tpot_ms: SpreadJson
    itl_ms: SpreadJson
    e2e_ms: SpreadJson
    interval_90: dict[str, tuple[float, float]]
    duration_s: float
    num_requests: int
    num_gpus: int
    decoding: str
    memory: MemoryJson
    imbalance: ImbalanceJson | None
    breakdown: BreakdownJson
    limited_by: str
    utilization: UtilizationJson
    preemptions: int
    peak_kv_share: float
    mean_running: float
    engine_steps: int
    parameter_set: ParameterSetJson
    seed: int
    digest: str


class RecommendationJson(msgspec.Struct):
    rank: int
    strategy: str
    equal_to: list[str]
    tensor_parallel_size: int
    data_parallel_size: int
    expert_parallel_size: int
    pipeline_parallel_size: int
    max_num_seqs: int
    memory_per_gpu_bytes: float
    predicted: SimulateJson
    limited_by: str
    meets_slo: bool
    command: str


class RefusalJson(msgspec.Struct, forbid_unknown_fields=True):
    strategy: str
    reason: str


class RecommendJson(msgspec.Struct):
    recommendations: list[RecommendationJson]
    refused: list[RefusalJson]
    objective: str
    explanation: list[str]


class EstimateJson(msgspec.Struct):
    model: str
    hardware: str
    batch: int
    decode_step_ms: float
    prefill_step_ms: float
    tpot_ms: float
    output_tokens_per_s: float
    decode_limited_by: str
    prefill_limited_by: str
    decode_hbm_bytes: float
    decode_flops: float
    expert_imbalance_ms: float
    breakdown: list[dict[str, Any]]
    memory: MemoryJson
    parameter_set: ParameterSetJson
    digest: str


def test_simulate_keeps_its_contract(run: Run):
    answer = run(f"simulate {SMALL} --concurrency 4 --seed 7")
    assert answer.code == 0
    result = msgspec.convert(answer.document, SimulateJson)
    assert result.seed == 7
    assert result.num_requests == 24
    assert not result.parameter_set.name.isspace()


def test_simulate_of_a_diffusion_model_keeps_the_same_contract(run: Run):
    answer = run(
        "simulate --model llada-moe-7b --hardware mi300x --num-prompts 3 --generation-len 64 --steps 32 --json"
    )
    result = msgspec.convert(answer.document, SimulateJson)
    assert result.decoding == "masked_diffusion"
    assert result.preemptions == 0


def test_a_dense_model_has_no_imbalance(run: Run):
    answer = run("simulate --model llada-8b --hardware h200 --num-prompts 2 --generation-len 32 --steps 16 --json")
    assert msgspec.convert(answer.document, SimulateJson).imbalance is None


def test_one_output_token_leaves_gaps_null_not_nan(run: Run):
    document = run(
        "simulate --model olmoe-1b-7b --hardware h200 --num-prompts 5 --input-len 32 --output-len 1 --json"
    ).document
    assert document["tpot_ms"] is None
    assert document["itl_ms"] is None
    assert document["ttft_ms"]["p99"] > 0


def test_recommend_keeps_its_contract(run: Run):
    answer = run("recommend --model olmoe-1b-7b --hardware h200 --gpus 2 --input-len 64 --output-len 16 --json")
    assert answer.code == 0
    result = msgspec.convert(answer.document, RecommendJson)
    assert [item.rank for item in result.recommendations] == list(range(1, len(result.recommendations) + 1))
    for item in result.recommendations:
        usable = 0.9 * item.predicted.memory.visible_bytes
        assert 0 < item.memory_per_gpu_bytes <= usable * (1 + 1e-9)
        assert item.predicted.memory.reserved_bytes == item.memory_per_gpu_bytes


def test_estimate_keeps_its_contract(run: Run):
    answer = run("estimate --model dbrx --hardware h200 --gpus 4 --json")
    assert answer.code == 0
    result = msgspec.convert(answer.document, EstimateJson)
    shown = sum(row["decode_ms"] for row in result.breakdown)
    assert shown == pytest.approx(result.decode_step_ms, rel=1e-6)


@pytest.mark.parametrize(
    ("verb", "key"), [("models", "models"), ("hardware", "hardware"), ("experiment", "experiments")]
)
def test_lists_are_rows_under_one_key(run: Run, verb: str, key: str):
    rows = run(f"{verb} --json").document[key]
    assert len(rows) >= 3
    assert all(set(row) == set(rows[0]) for row in rows)


def test_models_and_hardware_show_sources(run: Run):
    model = run("models mixtral-8x7b-instruct --json").document
    assert model["model"] == "mixtral-8x7b"
    assert model["architecture"]["sources"]["num_layers"]
    assert model["parameters"]["total"] == 46_702_792_704
    card = run("hardware mi300x --json").document
    assert card["data_sheet"]["sources"]["hbm_bytes_visible"]


@pytest.mark.parametrize("kind", [SimulateJson, RecommendationJson, RecommendJson, EstimateJson, SpreadJson])
def test_the_readme_documents_every_key(kind: type[msgspec.Struct]):
    documented = set(re.findall(r"`([a-z0-9_]+)`", README))
    assert set(kind.__struct_fields__) <= documented


@pytest.mark.parametrize("verb", sorted(make_command().commands))
def test_the_readme_names_every_verb(verb: str):
    assert f"moesim {verb}" in README
