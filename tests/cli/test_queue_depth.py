"""`moesim queue-depth`: three depths, told apart and consistent with each other."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Run
from tests.cli.test_bad_input import check_one_line

BASE = "queue-depth --model qwen3-30b-a3b --hardware h200 --gpus 8 --tp 1 --dp 8 --ep 8 --max-num-seqs 512 --json"


def test_depths_are_consistent(run: Run) -> None:
    document = run(f"{BASE} --routing zipf:0.6").document
    rows = document["depths"]
    assert [row["sequences_per_rank"] for row in rows][-1] == 512
    for row in rows:
        spread = row["tokens_per_expert"]
        assert row["tokens_per_group_step"] == 8 * row["tokens_per_rank_step"] >= 8 * row["sequences_per_rank"]
        assert spread["mean"] == pytest.approx(row["tokens_per_group_step"] * 8 / 128)
        assert spread["p10"] <= spread["p50"] <= spread["p90"] <= spread["max"]
    steps = [row["step_ms"] for row in rows]
    assert steps == sorted(steps)
    shares = [row["output_tokens_per_s"] for row in rows]
    assert shares == sorted(shares)
    assert rows[0]["tokens_per_expert"]["idle_experts"] > 30 > rows[-1]["tokens_per_expert"]["idle_experts"]


def test_skew_spreads_the_depth_at_which_experts_leave_the_memory_bound_regime(run: Run) -> None:
    even, skewed = (run(f"{BASE} --routing {name}").document["memory_bound_until"] for name in ("uniform", "zipf:0.8"))
    assert even[0]["tokens_in_its_product"] == pytest.approx(skewed[0]["tokens_in_its_product"])
    assert 20 < even[0]["tokens_in_its_product"] < 600
    depths = [[item["sequences_per_rank"] for item in table] for table in (even, skewed)]
    assert depths[0][3] / depths[0][1] < 1.3
    assert depths[1][3] / depths[1][1] > 3
    assert depths[1][1] < depths[1][2] < depths[1][3]


def test_overlap_helps_deep_queues_and_hurts_shallow_ones(run: Run) -> None:
    words = "queue-depth --model deepseek-v3 --hardware h200 --gpus 16 --tp 1 --dp 16 --ep 16 --max-num-seqs 1024"
    document = run(f"{words} --all2all-backend deepep_low_latency --json").document
    rows = document["depths"]
    assert rows[-1]["step_with_dual_batch_overlap_ms"] < rows[-1]["step_ms"]
    assert rows[3]["step_with_dual_batch_overlap_ms"] > rows[3]["step_ms"]
    pays = document["dual_batch_overlap_pays_from_sequences_per_rank"]
    assert rows[3]["sequences_per_rank"] < pays <= 1024
    for row in rows:
        assert row["step_with_dual_batch_overlap_ms"] >= max(row["routed_experts_ms"], row["expert_exchange_ms"])


def test_without_an_exchange_there_is_nothing_to_overlap(run: Run) -> None:
    document = run("queue-depth --model olmoe-1b-7b --hardware h200 --json").document
    assert document["dual_batch_overlap_pays_from_sequences_per_rank"] is None
    assert all(row["step_ms"] == row["step_with_dual_batch_overlap_ms"] for row in document["depths"])


def test_table_csv_and_refusals(run: Run) -> None:
    assert "Experts bound by memory until" in run("queue-depth --model olmoe-1b-7b --hardware h200").out
    assert run("queue-depth --model olmoe-1b-7b --hardware h200 --csv -").out.startswith("sequences_per_rank,")
    check_one_line(run("queue-depth --model llada-moe-7b --hardware h200"), "decodes by diffusion")
    check_one_line(run("queue-depth --model llada-8b --hardware h200"), "no routed experts")
