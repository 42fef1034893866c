"""`moesim place`: the JSON contract, exports, held-out judgement, economics, and bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from moesim.placement.replicas import check_map, rank_loads_of
from tests.cli.conftest import Run
from tests.cli.test_bad_input import check_one_line
from tests.placement.cases import EPLB_EXAMPLE

SIZES = "--gpus 8 --nodes 2 --groups 4 --replicas 16"
ALGORITHMS = ("linear", "round_robin", "greedy", "eplb_global", "eplb_hierarchical", "affinity", "optimal", "auto")


class LayerJson(msgspec.Struct, forbid_unknown_fields=True):
    layer: int
    max_over_mean: float
    lower_bound_max_over_mean: float
    gap: float
    gini: float
    proved_optimal: bool


class PlaceJson(msgspec.Struct):
    layers: list[LayerJson]
    physical_to_logical_map: list[list[int]]
    seconds: float


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    path = tmp_path / "counts.csv"
    np.savetxt(path, EPLB_EXAMPLE, fmt="%d", delimiter=",")
    return path


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Routed experts of 1,200 tokens, 2 layers, 64 experts, skewed."""
    rng = np.random.default_rng(0)
    noisy = rng.gumbel(size=(1200, 2, 64)) - 0.4 * np.log(np.arange(1, 65))
    path = tmp_path / "trace.npz"
    np.savez(path, routed_experts=np.argsort(-noisy, axis=2)[:, :, :8].astype(np.int16))
    return path


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_keeps_the_contract(run: Run, counts: Path, algorithm: str) -> None:
    answer = run(f"place --counts {counts} {SIZES} --algorithm {algorithm} --json")
    assert answer.code == 0
    result = msgspec.convert(answer.document, PlaceJson)
    physical = np.array(result.physical_to_logical_map)
    assert physical.shape == (2, 16)
    check_map(physical, 12, 8, "test")
    assert result.seconds > 0
    for item, loads, row in zip(result.layers, EPLB_EXAMPLE, physical, strict=True):
        carried = rank_loads_of(loads, row, 8)
        assert item.max_over_mean == pytest.approx(carried.max() / carried.mean())
        assert item.gap == pytest.approx(item.max_over_mean / item.lower_bound_max_over_mean - 1)
        assert item.lower_bound_max_over_mean <= [1.0533, 1.1904][item.layer]


def test_the_published_example(run: Run, counts: Path) -> None:
    expected = {"eplb_hierarchical": (1.208, 1.242), "eplb_global": (1.073, 1.190), "optimal": (1.053, 1.190)}
    for algorithm, ratios in expected.items():
        layers = run(f"place --counts {counts} {SIZES} --algorithm {algorithm} --json").document["layers"]
        assert [item["max_over_mean"] for item in layers] == pytest.approx(ratios, abs=5e-4)
        assert all(item["proved_optimal"] for item in layers) == (algorithm == "optimal")


def test_npz_and_json_counts_give_the_same_plan(run: Run, counts: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", logical_count=EPLB_EXAMPLE.astype(int))
    (tmp_path / "c.json").write_text(json.dumps({"logical_count": EPLB_EXAMPLE.tolist()}))
    maps = [
        run(f"place --counts {path} {SIZES} --json").document["physical_to_logical_map"]
        for path in (counts, tmp_path / "c.npz", tmp_path / "c.json")
    ]
    assert maps[0] == maps[1] == maps[2]


def test_a_plan_can_be_exported_simulated_and_measured_again(run: Run, trace: Path, tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    words = f"--counts {trace} --gpus 8 --replicas 72 --export {target} --format sglang"
    plan = run(f"place {words} --model olmoe-1b-7b --json").document
    assert json.loads(target.read_text())["physical_to_logical_map"] == plan["physical_to_logical_map"]
    measured = run(f"imbalance --counts {trace} --gpus 8 --map {target} --model olmoe-1b-7b --json").document
    ratios = [row["max_over_mean"] for row in measured["ranks"]]
    assert ratios == pytest.approx([item["max_over_mean"] for item in plan["layers"]])


def test_a_map_changes_the_simulated_ranks_and_memory(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    counts = tmp_path / "counts.csv"
    np.savetxt(counts, rng.poisson(4000 * rng.lognormal(0, 0.8, (16, 64))), fmt="%d", delimiter=",")
    target = tmp_path / "plan.json"
    assert run(f"place --counts {counts} --gpus 4 --replicas 80 --export {target}").code == 0
    base = f"simulate --model olmoe-1b-7b --hardware h200 --gpus 4 --tp 1 --dp 4 --ep 4 --routing {counts} --json"
    base += " --concurrency 512 --num-prompts 512 --input-len 32 --output-len 8"
    before, after = run(base).document, run(f"{base} --placement {target}").document
    assert after["imbalance"]["rank_max_over_mean"] < before["imbalance"]["rank_max_over_mean"] - 0.05
    assert after["memory"]["weights_bytes"] > before["memory"]["weights_bytes"] * 1.15


def test_a_trace_is_judged_on_its_rest_and_moving_is_priced(run: Run, trace: Path) -> None:
    words = f"place --counts {trace} --gpus 8 --nodes 2 --replicas 72 --model olmoe-1b-7b --hardware h200"
    document = run(f"{words} --algorithm affinity --json").document
    held = document["held_out"]
    assert held["planning_steps"] + held["judging_steps"] == document["profile"]["steps"]
    assert held["max_over_mean_on_rest"] >= held["max_over_mean_on_planning_part"]
    matrix = np.array(document["traffic"]["after"]["matrix"])
    assert matrix.shape == (8, 8)
    assert 1200 <= matrix.sum() <= 1200 * 8
    move = document["rebalancing"]
    assert move["bytes_moved"] == pytest.approx(move["replicas_moved"] * 8 * 3 * 2048 * 1024 * 2)
    assert move["move_ms"] > 0
    stay = run(f"{words} --interval 1 --json").document["rebalancing"]
    assert stay["verdict"].startswith("stay")


def test_seconds_weigh_the_network(run: Run, trace: Path) -> None:
    words = f"place --counts {trace} --gpus 8 --nodes 2 --model olmoe-1b-7b --hardware h200 --json"
    tokens, seconds = run(words).document, run(f"{words} --objective seconds").document
    copies = [item["traffic"]["after"]["copies_per_token_between_nodes"] for item in (tokens, seconds)]
    assert copies[1] < copies[0]


def test_vllm_flags_are_exported_and_read_back(run: Run, counts: Path, tmp_path: Path) -> None:
    target = tmp_path / "flags.txt"
    run(f"place --counts {counts} {SIZES} --export {target} --format vllm")
    assert '"num_redundant_experts": 4' in target.read_text()
    target.write_text("vllm serve m --enable-eplb --eplb-config.step_interval 9 --eplb-config.num_redundant_experts 16")
    words = "simulate --model qwen3-30b-a3b --hardware h200 --gpus 4 --tp 1 --dp 4 --ep 4 --num-prompts 64 --json"
    document = run(f"{words} --output-len 40 --routing zipf:0.5 --placement {target}").document
    assert document["rebalancing"][0]["rearrangements"] >= 3


def test_table_and_csv(run: Run, counts: Path, tmp_path: Path) -> None:
    assert "lower bound" in run(f"place --counts {counts} {SIZES}").out
    run(f"place --counts {counts} {SIZES} --csv {tmp_path / 'rows.csv'}")
    assert (tmp_path / "rows.csv").read_text().startswith("layer,max_over_mean,lower_bound_max_over_mean,gap,gini,")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (f"{SIZES} --algorithm best", ["algorithm: unknown 'best'"]),
        ("--gpus 8 --replicas 8", ["8 slots cannot hold 12 experts", "smallest that works on 8 ranks is 16"]),
        ("--gpus 8 --replicas 20", ["20 is no multiple", "16, 24"]),
        ("--gpus 0", ["gpus: 0"]),
        ("--gpus 1000000", ["gpus: 1000000", "1 to 1024"]),
        ("--gpus 8 --hold-out 2", ["hold_out: 2"]),
        (f"{SIZES} --groups -4", ["groups: -4"]),
        ("--gpus 8 --nodes 3", ["nodes: 3 does not divide the 8 gpus"]),
        (f"{SIZES} --groups 5 --algorithm eplb_hierarchical", ["groups: 5 does not divide the 12 experts"]),
        (f"{SIZES} --model dbrx", ["12 experts a layer, the model has 16"]),
        (f"{SIZES} --hardware h200", ["model: is missing"]),
        (f"{SIZES} --objective seconds", ["needs --model and --hardware"]),
        (f"{SIZES} --objective time", ["objective: unknown 'time'"]),
        (f"{SIZES} --time-limit -1", ["time_limit: -1"]),
        (f"{SIZES} --current nowhere.json", ["nowhere.json cannot be read"]),
        (f"{SIZES} --export plan.json --format xml", ["format: unknown 'xml'"]),
    ],
)
def test_bad_words_end_in_one_line(run: Run, counts: Path, words: str, parts: list[str]) -> None:
    check_one_line(run(f"place --counts {counts} {words} --json"), *parts)


def test_bad_files_end_in_one_line(run: Run, tmp_path: Path) -> None:
    check_one_line(run("place --gpus 8 --json"), "--counts is missing")
    check_one_line(run("place --counts nowhere.csv --gpus 8"), "nowhere.csv does not exist")
    bad = tmp_path / "bad.csv"
    bad.write_text("1,2\n3,-4\n")
    check_one_line(run(f"place --counts {bad} --gpus 2"), "row 2 column 2: -4.0 is no count")


def test_more_replicas_than_memory_holds_are_refused(run: Run, tmp_path: Path) -> None:
    counts = tmp_path / "counts.csv"
    np.savetxt(counts, np.full((2, 256), 50), fmt="%d", delimiter=",")
    words = f"place --counts {counts} --gpus 8 --model deepseek-v3 --hardware h200 --algorithm linear"
    check_one_line(run(f"{words} --replicas 1024"), "1024 physical experts", "the most that fits is")
