from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hw_validation.experiment.runs import PlannedRun, list_runs
from hw_validation.server.prepare import prepare_folder
from moesim.experiments import Experiment


def run(measurement: dict[str, Any], **words: Any) -> PlannedRun:
    base = {"hardware": "h200", "gpus": 1, **words}
    (found,) = list_runs(Experiment(name="x", description="", base=base, measurement=measurement))
    assert isinstance(found, PlannedRun), found
    return found


def test_reduced_layers_are_written_beside_the_whole_model(tmp_path: Path) -> None:
    item = run({"load_format": "dummy", "num_layers": 5}, model="deepseek-v3", input_len=64, max_model_len=4096)
    folder = prepare_folder(item.server, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["first_k_dense_replace"]) == (5, 3)
    assert folder.name == "deepseek-v3-5layers"
    assert (folder / "tokenizer.json").is_file()


def test_fetched_configuration_is_preferred_and_its_tokenizer_used(tmp_path: Path) -> None:
    fetched = tmp_path / "Qwen--Qwen3-30B-A3B"
    fetched.mkdir()
    (fetched / "config.json").write_text(json.dumps({"num_hidden_layers": 48, "rope_theta": 7}))
    (fetched / "tokenizer.json").write_text('{"mine": 1}')
    item = run({"load_format": "dummy", "num_layers": 6}, model="qwen3-30b-a3b")
    folder = prepare_folder(item.server, tmp_path)
    assert json.loads((folder / "config.json").read_text()) == {"num_hidden_layers": 6, "rope_theta": 7}
    assert json.loads((folder / "tokenizer.json").read_text()) == {"mine": 1}
