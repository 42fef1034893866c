from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw_validation.micro_collectives import Case, bus_factor, list_cases, list_graph_cases, main, split_sizes
from hw_validation.records import read_records

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
SMALL = ["--min-bytes", "256", "--max-bytes", "4096"]


def torchrun(ranks: int, *words: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--standalone"]
    command += ["-m", "hw_validation.micro_collectives", *words]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_two_processes_measure_every_collective_and_resume(tmp_path: Path) -> None:
    out = tmp_path / "collectives.jsonl"
    torchrun(2, "--out", str(out), *SMALL)
    records = list(read_records(out))
    assert {record.key for record in records} == {case.key for case in list_cases([2], 256, 4096)}
    for record in records:
        assert record.values["time_us"] >= record.values["fastest_rank_us"] > 0
        assert record.setup.engine == "gloo"
        assert record.setup.flags["ranks"] == 2
    size = out.stat().st_size
    assert "us\n" not in torchrun(2, "--out", str(out), *SMALL)
    assert out.stat().st_size == size


def test_without_a_gpu_graphs_are_left_out_and_the_rest_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "collectives.jsonl"
    told = torchrun(2, "--out", str(out), "--graphs", "--min-bytes", "1024", "--max-bytes", "1024")
    assert "1024/graph: left out" in told
    assert {record.key for record in read_records(out)} == {case.key for case in list_cases([2], 1024, 1024)}


def test_small_messages_are_repeated_within_graphs() -> None:
    cases = list(list_graph_cases([2, 4], 256, 512 * 2**20))
    custom = [case.num_bytes for case in cases if case.operation == "custom_all_reduce" and case.ranks == 2]
    assert custom == [256 * 4**power for power in range(8)]
    assert max(case.num_bytes for case in cases) == 16 * 2**20
    assert all(case.key.endswith("/graph") for case in cases)


def test_smaller_groups_leave_the_other_ranks_waiting(tmp_path: Path) -> None:
    out = tmp_path / "collectives.jsonl"
    torchrun(3, "--out", str(out), "--group-sizes", "2,3", "--min-bytes", "1024", "--max-bytes", "1024")
    assert {record.point["ranks"] for record in read_records(out)} == {2, 3}


def test_one_rank_is_passed_over_cleanly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["--out", str(tmp_path / "none.jsonl")]) == 0
    assert "nothing measured" in capsys.readouterr().err
    assert not (tmp_path / "none.jsonl").exists()


@given(st.integers(0, 10**8), st.integers(1, 64), st.floats(0, 3))
def test_splits_send_everything_and_more_to_popular_ranks(elements: int, ranks: int, skew: float) -> None:
    sizes = split_sizes(elements, ranks, skew)
    assert sum(sizes) == elements
    assert min(sizes) >= 0
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(sizes))
    if skew == 0:
        assert max(sizes) - min(sizes) <= 1


def test_sizes_reach_from_256_bytes_to_512_mib() -> None:
    sizes = {case.num_bytes for case in list_cases([8])}
    assert (min(sizes), max(sizes)) == (256, 512 * 2**20)


@pytest.mark.parametrize(("operation", "factor"), [("all_reduce", 1.75), ("all_gather", 0.875), ("all_to_all", 0.875)])
def test_bus_factors_are_those_of_nccl_tests(operation: str, factor: float) -> None:
    assert bus_factor(Case(operation=operation, num_bytes=8, ranks=8)) == factor
