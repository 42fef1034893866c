from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.hw_validation.server.site import ROOT, Site

LIBRARY = Path(__file__).with_name("fake_library")
TINY = {
    "name": "tiny-moe",
    "huggingface_id": "nobody/tiny-moe",
    "hidden_size": 64,
    "num_layers": 2,
    "vocab_size": 128,
    "attention": {"type": "gqa", "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "qk_norm": "per_head"},
    "moe": {"num_experts": 8, "top_k": 2, "intermediate_size": 32},
    "num_moe_layers": 2,
    "max_position_embeddings": 256,
    "decoding": "masked_diffusion",
    "diffusion": {"block_len": 8, "steps": 8, "generation_len": 16},
    "sources": {},
}


@pytest.fixture
def offline(tmp_path: Path) -> Site:
    site = Site(tmp_path, variables={"PYTHONPATH": f"{ROOT}{os.pathsep}{LIBRARY}"})
    site.experiment["base"] |= {"frontend": "offline", "concurrency": 8}
    site.experiment["runs"] = [{"input_len": 16}, {"input_len": 48}]
    site.experiment["measurement"]["return_routed_experts"] = True
    return site


def test_offline_runs_keep_times_and_the_experts_of_every_token(offline: Site) -> None:
    code, output = offline.run()
    assert code == 0, output
    records = offline.records()
    assert [record["point"]["input_len"] for record in records] == [16, 48]
    for record in records:
        counts = record["tables"]["expert_counts"]
        tokens = 8 * (record["point"]["input_len"] + 8 - 1)
        assert all(sum(layer) == tokens * 8 for layer in counts)
        assert record["values"]["ttft_median_ms"] == pytest.approx(20)
        assert record["values"]["tpot_median_ms"] == pytest.approx(4)
        assert record["values"]["expert_load_max_over_mean"] > 1
        assert record["setup"]["flags"]["frontend"] == "offline"


def test_offline_engine_that_resolved_to_something_else_is_refused(offline: Site) -> None:
    offline.variables["FAKE_RESOLVED"] = json.dumps({"max_num_batched_tokens": 2048})
    code, output = offline.run()
    assert code == 2
    assert "max_num_batched_tokens: planned 16384, found 2048" in output
    assert offline.records() == []


def test_offline_engine_that_breaks_fails_its_runs(offline: Site) -> None:
    offline.variables["FAKE_RESOLVED"] = "{"
    code, output = offline.run()
    assert code == 1
    assert "the offline engine ended with exit code 1" in output


def test_expert_counts_are_read_by_the_simulator(offline: Site, tmp_path: Path) -> None:
    from moesim.scenarios import Request, make_scenario

    offline.run()
    path = tmp_path / "counts.json"
    path.write_text(json.dumps(offline.records()[0]["tables"]["expert_counts"]))
    scenario = make_scenario(Request(model="olmoe-1b-7b", hardware="h200", gpus=1, routing=str(path)))
    assert scenario.routing.kind == "counts"


def test_diffusion_runs_go_through_the_own_engine(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    site = Site(tmp_path, variables={"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    model = tmp_path / "tiny-moe.yaml"
    model.write_text(json.dumps(TINY))
    site.experiment["base"] = {"model": str(model), "hardware": "h200", "gpus": 1, "input_len": 8, "num_prompts": 1}
    site.experiment["base"] |= {"generation_len": 16, "block_len": 8, "steps": 8, "enforce_eager": True}
    site.experiment["runs"] = [{"expert_execution": "loop"}, {"expert_execution": "grouped", "concurrency": 2}]
    code, output = site.run()
    assert code == 0, output
    loop, grouped = site.records()
    assert loop["setup"]["engine"] == "moesim-llada"
    assert loop["setup"]["num_layers"] == 2
    assert loop["tables"]["llada"][0]["settings"]["expert_execution"] == "loop"
    assert grouped["tables"]["llada"][0]["settings"]["batch"] == 2
    assert loop["values"]["forwards"] == 8
    assert loop["values"]["e2e_median_ms"] > 0
    again, output = site.run()
    assert again == 0
    assert "0 runs recorded, 2 were there" in output
