from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hw_validation.micro import Task, list_tasks, main, run_tasks
from hw_validation.micro_cases import ExpertsCase, attention_cases, draw_experts, gemm_cases, gemm_shapes
from hw_validation.micro_operators import Values, describe_draws
from hw_validation.records import RecordLog, read_records
from moesim.specs.model import count_parameters
from tests.hw_validation.fakes import ENVIRONMENT
from tests.hw_validation.test_dummy_models import model


def case(tokens: int, zipf: float) -> ExpertsCase:
    return ExpertsCase(
        model="m", tokens=tokens, zipf=zipf, num_experts=64, top_k=8, hidden_size=16, intermediate_size=16
    )


def test_dense_products_hold_the_weights_outside_the_experts() -> None:
    small = model("mistralai/Mixtral-8x7B-v0.1")
    counts = count_parameters(small)
    per_layer = {name: out * into for name, (out, into) in gemm_shapes(small).items() if name != "lm_head"}
    products = counts.attention + counts.router + counts.shared_experts
    assert small.num_layers * sum(per_layer.values()) == products


def test_latent_attention_has_its_own_products() -> None:
    shapes = gemm_shapes(model("deepseek-ai/DeepSeek-V3"))
    assert shapes["latent_down"] == (48 + 32 + 8, 128)
    assert shapes["query_up"] == (4 * 24, 48)
    assert shapes["dense_up"] == (512, 128)


def test_lm_head_is_not_run_on_whole_prompts() -> None:
    rows = [item.rows for item in gemm_cases(model("allenai/OLMoE-1B-7B-0924")) if item.operator == "lm_head"]
    assert max(rows) == 256


def test_head_layouts_are_measured_once() -> None:
    models = [model(name) for name in ("allenai/OLMoE-1B-7B-0924", "mistralai/Mixtral-8x7B-v0.1")]
    keys = [item.key for item in attention_cases(models)]
    assert keys
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("zipf", [0.0, 1.0])
def test_draws_are_distinct_experts(zipf: float) -> None:
    chosen = draw_experts(case(500, zipf), seed=1)
    assert chosen.shape == (500, 8)
    assert all(len(set(token)) == 8 for token in chosen.tolist())
    assert not np.array_equal(chosen, draw_experts(case(500, zipf), seed=2))


def test_skewed_draws_load_one_expert_more() -> None:
    even, skewed = (describe_draws([draw_experts(case(500, zipf), seed=1)]) for zipf in (0.0, 1.0))
    assert even["distinct_experts_mean"] == 64
    assert (skewed["max_expert_tokens_mean"] or 0.0) > 2 * (even["max_expert_tokens_mean"] or 0.0)


def tasks(failing: str = "") -> Iterator[Task]:
    def measure(key: str) -> Values:
        if key == failing:
            raise RuntimeError("no such kernel")
        return {"latency_us": 2.0}

    for key in "abc":
        yield Task(key, "none", "torch", {"operation": key}, partial(measure, key))


def test_tasks_are_resumed_and_failures_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "micro.jsonl"
    late = time.perf_counter() + 60
    assert run_tasks(tasks(failing="b"), RecordLog(path), ENVIRONMENT, late)
    assert "b: failed: RuntimeError: no such kernel" in capsys.readouterr().err
    assert run_tasks(tasks(), RecordLog(path), ENVIRONMENT, late)
    assert [record.key for record in read_records(path)] == ["a", "c", "b"]


def test_budget_stops_before_the_next_task(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "micro.jsonl")
    assert not run_tasks(tasks(), log, ENVIRONMENT, time.perf_counter() - 1)
    assert log.keys == set()


def test_task_keys_are_unique() -> None:
    models = [model("allenai/OLMoE-1B-7B-0924")]
    keys = [task.key for task in list_tasks(models, with_vllm=True)]
    assert len(keys) == len(set(keys))
    assert len(keys) > len(list(list_tasks(models, with_vllm=False)))


def test_without_a_gpu_the_reason_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--models", "mixtral-8x7b", "--out", str(tmp_path / "micro.jsonl")])
    assert code in (0, 2, 3)
    if code == 2:
        assert "error:" in capsys.readouterr().err
