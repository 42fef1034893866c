"""`moesim imbalance`: the JSON contract, chance, ranks, cost, plots, and bad input in one line."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from moesim.routing.imbalance import gini, jain_index
from tests.cli.conftest import Run
from tests.cli.test_bad_input import check_one_line
from tests.placement.cases import EPLB_EXAMPLE


class LayerJson(msgspec.Struct):
    layer: int
    gini: float
    gini_expected_uniform: float
    cv: float
    max_over_mean: float
    jain: float
    entropy_bits: float
    hot_experts: list[int]
    cold_experts: list[int]


class RankJson(msgspec.Struct):
    layer: int
    loads: list[float]
    max_over_mean: float


class ImbalanceJson(msgspec.Struct):
    layers: list[LayerJson]
    ranks: list[RankJson] | None


@pytest.fixture
def counts(tmp_path: Path) -> Path:
    path = tmp_path / "counts.csv"
    np.savetxt(path, EPLB_EXAMPLE, fmt="%d", delimiter=",")
    return path


def test_the_contract(run: Run, counts: Path) -> None:
    answer = run(f"imbalance --counts {counts} --gpus 4 --json")
    assert answer.code == 0
    result = msgspec.convert(answer.document, ImbalanceJson)
    for item, loads in zip(result.layers, EPLB_EXAMPLE, strict=True):
        assert item.gini == pytest.approx(gini(loads))
        assert item.jain == pytest.approx(jain_index(loads))
        assert item.max_over_mean == pytest.approx(loads.max() / loads.mean())
        assert item.hot_experts == np.flatnonzero(loads > 2 * loads.mean()).tolist()
        assert item.cold_experts == np.flatnonzero(loads < 0.2 * loads.mean()).tolist()
        assert 0 < item.gini_expected_uniform < item.gini
    assert result.ranks is not None
    assert result.ranks[0].loads == EPLB_EXAMPLE[0].reshape(4, 3).sum(axis=1).tolist()
    assert set(answer.document["balancedness"]) == {"vllm_ratio_of_sums", "sglang_mean_of_ratios"}


def test_ranks_follow_the_map(run: Run, counts: Path, tmp_path: Path) -> None:
    target = tmp_path / "map.json"
    target.write_text('{"physical_to_logical_map": [[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]]}')
    document = run(f"imbalance --counts {counts} --gpus 4 --map {target} --json").document
    assert document["ranks"][1]["loads"] == EPLB_EXAMPLE[1].reshape(3, 4).sum(axis=0).tolist()
    assert run(f"imbalance --counts {counts} --json").document["ranks"] is None


def test_dummy_tokens_are_reported(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    real = np.argsort(rng.random((800, 2, 60)), axis=2)[:, :, :4]
    np.savez(tmp_path / "log.npz", routed_experts=np.concatenate([np.tile([3, 9, 11, 30], (5000, 2, 1)), real]))
    words = f"imbalance --counts {tmp_path / 'log.npz'} --model qwen1.5-moe-a2.7b --json"
    clean, raw = run(words).document, run(f"{words} --keep-warmup").document
    assert clean["profile"]["cut"] == {"repeated dummy tokens": 5000}
    assert clean["summary"]["mean_gini"] < 0.1 < 0.75 < raw["summary"]["mean_gini"]
    assert clean["coactivation"]["top_pairs"][0]["layer"] == 0


def test_cost_grows_with_skew_and_vanishes_without(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    costs: list[dict[str, float]] = []
    for name, skew in (("even", 0.0), ("skewed", 1.0)):
        path = tmp_path / f"{name}.csv"
        np.savetxt(path, rng.poisson(5000 * rng.lognormal(0, skew, (16, 64))), fmt="%d", delimiter=",")
        words = f"imbalance --counts {path} --gpus 8 --model olmoe-1b-7b --hardware h200 --batch 512 --json"
        costs.append(run(words).document["cost"])
    assert costs[1]["imbalance_ms"] > 3 * costs[0]["imbalance_ms"] >= 0
    assert costs[1]["slowest_rank_experts_ms"] - costs[1]["mean_rank_experts_ms"] == pytest.approx(
        costs[1]["imbalance_ms"]
    )
    curve = costs[0]["curve"]
    assert isinstance(curve, list)
    waits = [row["imbalance_ms"] for row in curve]
    assert waits[-1] > waits[0]
    assert curve[0]["against_uniform"] == pytest.approx(0, abs=0.02)


def test_synthetic_traces_are_drawn_saved_and_plotted(run: Run, tmp_path: Path) -> None:
    saved, plot = tmp_path / "trace.npz", tmp_path / "map.png"
    words = "imbalance --model olmoe-1b-7b --routing zipf:0.5 --tokens 2000 --drift-tokens 2000 --gpus 4"
    first = run(f"{words} --save-profile {saved} --plot {plot} --json").document
    again = run(f"imbalance --counts {saved} --model olmoe-1b-7b --gpus 4 --json").document
    assert first["profile"]["digest"] == again["profile"]["digest"]
    assert again["over_time"][-1]["hot_kept"] is not None
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_table_and_csv(run: Run, counts: Path, tmp_path: Path) -> None:
    assert "gini expected uniform" in run(f"imbalance --counts {counts} --gpus 4").out
    run(f"imbalance --counts {counts} --csv {tmp_path / 'rows.csv'}")
    assert (tmp_path / "rows.csv").read_text().startswith("layer,gini,")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--gpus 5", ["gpus: 5 does not divide the 12 experts", "1, 2, 3, 4, 6, 12"]),
        ("--map m.json", ["gpus: is missing"]),
        ("--top-k 13", ["top_k: 13", "12 experts"]),
        ("--plot map.gif", ["suffix '.gif'"]),
        ("--hardware h200", ["model: is missing"]),
        ("--model mixtral-8x7b", ["12 experts a layer, the model has 8"]),
    ],
)
def test_bad_words_end_in_one_line(run: Run, counts: Path, words: str, parts: list[str]) -> None:
    check_one_line(run(f"imbalance --counts {counts} {words} --json"), *parts)


def test_bad_files_end_in_one_line(run: Run, tmp_path: Path) -> None:
    check_one_line(run("imbalance --json"), "--counts is missing")
    check_one_line(run("imbalance --routing zipf:0.5 --json"), "model: is missing")
    short = tmp_path / "short.csv"
    short.write_text("1,0,0,0,1,0,0,0\n")
    check_one_line(run(f"imbalance --counts {short}"), "too short to say anything", "8 experts")
