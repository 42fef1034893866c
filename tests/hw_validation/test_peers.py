"""Two processes that run one deployment: started, agreed with each other, and ended together."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hw_validation.engine import EngineSettings, check_ranks
from hw_validation.peers import ALONE, Peers
from hw_validation.records import read_records
from moesim.errors import InputError

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
SWEEP = """
import sys, time
from pathlib import Path
import torch.distributed as dist
from hw_validation.peers import join_peers
from hw_validation.plan import ClosedLoopPoint, plan_points
from hw_validation.vllm_sweep import Sweep, _open_log
from tests.hw_validation.fakes import LIMITS, SETUP, FakeEngine
import msgspec

dist.init_process_group("gloo")
peers = join_peers(int(sys.argv[2]))

class Engine(FakeEngine):
    def step(self):
        time.sleep(0.002 * (1 + peers.rank))
        return super().step()

sizes = {"tensor_parallel_size": 2 // peers.replicas, "data_parallel_size": peers.replicas, "expert_parallel_size": 2}
flags = SETUP.flags | sizes | {"custom_all_reduce": True, "enable_eplb": False}
engine = Engine(setup=msgspec.structs.replace(SETUP, flags=flags))
log = _open_log(Path(sys.argv[1]), peers)
points = plan_points(["decode", "closed", "open", "rank-skew"], [64], LIMITS)
wanted = [p for p in points if not isinstance(p, ClosedLoopPoint) or p.concurrency < 64]
late_s = float(sys.argv[3]) + 100.0 * peers.rank
complete = Sweep(engine, log, time.perf_counter() + late_s, peers).run(wanted)
told = f"{complete} {len(log.keys)} {sorted(engine.spreads)[:1]} {engine.busy}"
Path(f"{sys.argv[1]}.{peers.rank}").write_text(told)
"""


def run_ranks(*words: str, count: int = 2, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hw_validation.ranks", str(count), "--", sys.executable, *words]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, env=variables, input=text, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT
    )


def told_by_both(out: Path) -> str:
    """What the first process said at its end, and the second as well."""
    first, second = (Path(f"{out}.{rank}").read_text() for rank in range(2))
    assert first == second
    return first


@pytest.fixture
def script(tmp_path: Path) -> str:
    (tmp_path / "sweep.py").write_text(SWEEP)
    return str(tmp_path / "sweep.py")


def test_two_processes_measure_the_same_points_and_one_records(script: str, tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    done = run_ranks(script, str(out), "2", "60")
    assert done.returncode == 0, done.stderr
    records = list(read_records(out))
    assert told_by_both(out) == f"True {len(records)} [-1.0] False"
    loops = [record for record in records if record.kind == "closed_loop"]
    assert {record.point["concurrency"] for record in loops} == {2, 4, 8, 16, 32}
    assert all(record.values["num_requests"] == record.point["num_requests"] for record in loops)
    assert all("+tp1dp2ep2/" in record.key for record in records)
    assert {len(record.tables["ranks"]) for record in records} == {2}
    assert not [record for record in records if record.kind == "open_loop"]


def test_the_first_process_says_when_time_is_over(script: str, tmp_path: Path) -> None:
    """The second one's clock would let it go on for 100 s more."""
    begin = time.monotonic()
    out = tmp_path / "runs.jsonl"
    done = run_ranks(script, str(out), "1", "1.5")
    assert done.returncode == 0, done.stderr
    assert told_by_both(out).startswith("False")
    assert time.monotonic() - begin < 95


def test_what_one_log_holds_no_process_measures_again(script: str, tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    run_ranks(script, str(out), "1", "1.5")
    kept = [record.date for record in read_records(out)]
    done = run_ranks(script, str(out), "1", "60")
    assert done.returncode == 0, done.stderr
    assert [record.date for record in read_records(out)][: len(kept)] == kept


def test_a_line_of_input_reaches_all_ranks() -> None:
    reader = "import os, sys; os.write(1, f\"{os.environ['RANK']} {sys.stdin.readline()}\".encode())"
    done = run_ranks("-c", reader, text="go 5\n")
    assert sorted(done.stdout.splitlines()) == ["0 go 5", "1 go 5"]


def test_a_failing_rank_ends_the_others_and_gives_its_code() -> None:
    begin = time.monotonic()
    done = run_ranks("-c", "import os, sys, time\nsys.exit(7) if os.environ['RANK'] == '1' else time.sleep(100)")
    assert done.returncode == 7
    assert time.monotonic() - begin < 90


def test_ranks_that_ran_out_of_time_are_no_failure() -> None:
    assert run_ranks("-c", "raise SystemExit(3)").returncode == 3


def test_without_a_command_the_launcher_says_how() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hw_validation.ranks", "two"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_alone_everything_is_agreed() -> None:
    assert ALONE.agree(True) and ALONE.first(3) == 3 and ALONE.all(4) == ALONE.one_per_replica(4) == [4]


@pytest.mark.parametrize(("replicas", "expected"), [(1, [0, 0, 0, 0]), (2, [0, 0, 1, 1]), (4, [0, 1, 2, 3])])
def test_neighbouring_ranks_are_one_replica(replicas: int, expected: list[int]) -> None:
    assert [Peers(rank, 4, replicas).replica for rank in range(4)] == expected


def test_sizes_that_were_not_started_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    check_ranks(EngineSettings(model="x"))
    with pytest.raises(InputError, match=r"is 4, but 1 processes were started"):
        check_ranks(EngineSettings(model="x", tensor_parallel_size=2, data_parallel_size=2))
