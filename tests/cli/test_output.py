"""Where answers go: stdout is data, stderr is talk, files are whole."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

SMALL = "--model olmoe-1b-7b --hardware h200 --num-prompts 24 --input-len 64 --output-len 16 --concurrency 4"


def test_csv_to_stdout_is_nothing_but_csv(run: Run):
    answer = run(f"simulate {SMALL} --csv -")
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    assert len(rows) == 1
    assert rows[0]["model"] == "olmoe-1b-7b"
    assert float(rows[0]["output_tokens_per_s"]) > 0


def test_csv_file_comes_beside_the_answer(run: Run, tmp_path: Path):
    path = tmp_path / "rows.csv"
    answer = run(
        "recommend", *["--model", "olmoe-1b-7b", "--hardware", "h200", "--gpus", "2", "--json", "--csv"], str(path)
    )
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    assert [row["strategy"] for row in rows] == [item["strategy"] for item in answer.document["recommendations"]]
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("verb", ["models", "hardware", "experiment"])
def test_lists_come_as_csv(run: Run, verb: str):
    rows = list(csv.DictReader(io.StringIO(run(f"{verb} --csv -").out)))
    assert len(rows) >= 3


def test_estimate_csv_has_a_row_an_operator(run: Run):
    rows = list(csv.DictReader(io.StringIO(run("estimate --model dbrx --hardware h200 --gpus 4 --csv -").out)))
    assert {"routed experts", "attention", "host (exposed)"} <= {row["operator"] for row in rows}


def test_tables_show_the_main_figures(run: Run):
    answer = run(f"simulate {SMALL}")
    assert answer.err == ""
    for word in ("output tokens/s", "TTFT", "p99", "routed experts", "Parameter set", "preemptions"):
        assert word in answer.out


def test_recommend_explains_and_gives_a_command(run: Run):
    answer = run("recommend --model mixtral-8x7b --hardware h200 --gpus 4 --input-len 64 --output-len 16")
    for word in ("limited by", "next best strategy", "vllm serve"):
        assert word in answer.out


def test_perfetto_timeline_is_a_chrome_trace(run: Run, tmp_path: Path):
    path = tmp_path / "trace.json"
    words = ["simulate", *SMALL.split(), "--perfetto", str(path), "--json"]
    answer = run(*words)
    assert answer.document["num_requests"] == 24
    assert "ui.perfetto.dev" in answer.err
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] > 0 and event["ts"] >= 0 for event in slices)
    assert sum(event["args"]["steps"] for event in slices) == answer.document["engine_steps"]
    begun = sum(event["ph"] == "b" for event in events)
    assert begun == sum(event["ph"] == "e" for event in events) == 2 * 24


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(run: Run):
    words = f"simulate {SMALL} --range-ratio 0.5 --json"
    assert run(words).out == run(words).out
    assert run(f"{words} --seed 1").out != run(words).out


def test_aliases_and_ids_are_the_same_model(run: Run):
    names = ("mixtral-8x7b", "mixtral-8x7b-instruct", "mistralai/Mixtral-8x7B-Instruct-v0.1", "MIXTRAL-8X7B")
    digests = {
        run(f"simulate --model {name} --hardware h200 --gpus 2 --num-prompts 2 --output-len 4 --json").document[
            "digest"
        ]
        for name in names
    }
    assert len(digests) == 1


def test_an_experiment_resumes_where_it_stopped(run: Run, tmp_path: Path):
    path, done = tmp_path / "mine.yaml", tmp_path / "done.jsonl"
    path.write_text(
        "name: mine\ndescription: d\n"
        "base: {model: olmoe-1b-7b, hardware: h200, num_prompts: 4, output_len: 4}\nvary: {concurrency: [1, 2, 4]}\n"
    )
    words = ("experiment", str(path), "--output", str(done), "--json")
    first = run(*words)
    assert len(done.read_bytes().splitlines()) == len(first.document["rows"]) == 3
    lines = done.read_bytes().splitlines(keepends=True)
    done.write_bytes(lines[0] + lines[1][:40])
    second = run(*words)
    assert "1 of 3 runs were taken" in second.err
    assert second.document == first.document
    assert done.read_bytes() == b"".join(lines)
    again = run(*words)
    assert "3 of 3 runs were taken" in again.err


@pytest.mark.parametrize("name", ["single_gpu", "multi_gpu", "multi_node"])
def test_shipped_experiments_are_valid_and_not_empty(run: Run, name: str):
    rows = run("experiment --json").document["experiments"]
    assert next(row["runs"] for row in rows if row["experiment"] == name) >= 4


def test_multi_node_experiment_runs(run: Run):
    rows = run("experiment multi_node --json").document["rows"]
    assert [row["nodes"] for row in rows] == [1, 2, 4, 8]
    assert all(row["output_tokens_per_s"] > 0 for row in rows)
