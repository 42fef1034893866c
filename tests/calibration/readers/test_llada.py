"""The LLaDA engine's document as measurements and as runs."""

import json

import pytest

from calibration.readers import read_measurements, read_runs
from moesim.errors import InputError
from moesim.specs.catalog import list_models

MODEL = next(model for model in list_models().values() if model.is_diffusion)


def run(**change):
    return {
        "model": MODEL.name,
        "architecture": {"num_layers": MODEL.num_layers},
        "layers_reduced_from": None,
        "weights": "random",
        "dtype": "bfloat16",
        "settings": {
            "prompt_len": 60,
            "generation_len": 128,
            "steps": 64,
            "block_len": 32,
            "batch": 2,
            "cfg_scale": 0.0,
            "cache": "none",
            "expert_execution": "grouped",
            "graphs": True,
            "temperature": 0.0,
        },
        "parallel": {"ranks": 2, "tp": 2, "ep": 1},
        "operators": "triton",
        "environment": {"python": "3.12", "torch": "2.9", "hip": None, "device": "NVIDIA H200"},
        "peak_memory_bytes": 10,
        "measured": {"output_tok_per_s": 100.0, "prompt_mean_ms": 2560.0, "forward_step_ms": 40.0},
        "repeats": [{"total_ms": 2560.0}],
        "floor_share": 0.5,
        "expert_loads": None,
    } | change


def write(path, **change):
    path.write_text(json.dumps({"schema": "moesim.llada/1", "records": [run(**change)]}))
    return path


def test_a_run_of_the_engine(tmp_path):
    path = write(tmp_path / "llada.json")
    ((found,), skipped) = read_runs(path)
    assert not skipped
    request = found.request
    assert (request.hardware, request.tp, request.dp, request.gpus) == ("h200", 2, 1, 2)
    assert (request.generation_len, request.steps, request.block_len, request.input_len) == (128, 64, 32, 60)
    assert (request.enforce_eager, request.max_num_seqs, request.concurrency) == (False, 2, 2)
    assert found.measured == {"output_tok_per_s": 100.0, "prompt_mean_ms": 2560.0}
    (item,) = read_measurements(path)
    assert item.tables["repeats"] == [{"total_ms": 2560.0}]
    assert item.software.versions == {"python": "3.12", "torch": "2.9"}
    assert item.values["floor_share"] == 0.5


def test_what_sets_a_run_apart_is_labelled(tmp_path):
    settings = run()["settings"]
    path = write(
        tmp_path / "llada.json", settings=settings | {"threshold": 0.9, "expert_loads": True}, operators="grouped_mm"
    )
    (item,) = read_measurements(path)
    assert item.labels == ("forwards_vary", "expert_loads_counted", "operators_grouped_mm")
    runs, skipped = read_runs(path)
    assert not runs
    assert "threshold" in skipped[0].reason


def test_repeats_of_a_configuration_are_left_out_together(tmp_path):
    settings = run()["settings"]
    found = []
    for start, change in (("start-a", {}), ("start-b", {"expert_loads": True}), ("start-c", {"batch": 1})):
        (tmp_path / start).mkdir()
        found += read_measurements(write(tmp_path / start / "llada.json", settings=settings | change))
    assert found[0].configuration == found[1].configuration != found[2].configuration
    assert len({item.id for item in found}) == 3
    assert found[0].id == "start-a/llada.json#records[0]"


def test_fewer_layers_are_told(tmp_path):
    path = write(tmp_path / "llada.json", architecture={"num_layers": 2}, layers_reduced_from=MODEL.num_layers)
    runs, skipped = read_runs(path)
    assert not runs
    assert f"2 of the {MODEL.num_layers} layers" in skipped[0].reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measured": {"prompt_mean_ms": -1.0}}, "prompt_mean_ms"),
        ({"architecture": {}}, "num_layers"),
        ({"settings": {}}, "prompt_len"),
        ({"parallel": None}, "parallel"),
    ],
)
def test_wrong_documents(tmp_path, change, words):
    path = write(tmp_path / "llada.json", **change)
    with pytest.raises(InputError, match=words) as caught:
        read_runs(path)
    assert str(path) in str(caught.value)


def test_another_version(tmp_path):
    path = tmp_path / "llada.json"
    path.write_text('{"schema": "moesim.llada/2", "records": []}')
    with pytest.raises(InputError, match=r"must be 'moesim\.llada/1'"):
        read_runs(path)
