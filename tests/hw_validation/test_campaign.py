from __future__ import annotations

import gzip
import io
import os
import sys
import time
from pathlib import Path

import pytest

from hw_validation import micro, micro_collectives, serving, step_counters, vllm_sweep
from hw_validation.campaigns.jobs import Job
from hw_validation.campaigns.runner import CAMPAIGNS, Campaign, select_jobs
from hw_validation.llada.cli import build_parser, chosen
from hw_validation.llada.settings import RunSettings
from hw_validation.plan import SECTIONS
from hw_validation.standby import go_line, wait_for_go
from moesim.errors import InputError

PARSERS = {
    "hw_validation.vllm_sweep": vllm_sweep._parser,
    "hw_validation.micro": micro._parser,
    "hw_validation.micro_collectives": micro_collectives._parser,
    "hw_validation.serving": serving._parser,
    "hw_validation.step_counters": step_counters._parser,
    "hw_validation.llada": build_parser,
}
SCRIPT = """
import subprocess, sys, time
from hw_validation.standby import wait_for_go
out, action = sys.argv[1:3]
with open(out + ".started", "w") as file:
    file.write(str(time.time()))
if "--standby" in sys.argv:
    granted = wait_for_go()
    with open(out + ".go", "w") as file:
        file.write(str(time.time()))
if action == "fail":
    sys.exit(1)
with open(out, "w") as file:
    file.write(action)
if action == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(out, "a") as file:
        file.write(str(child.pid))
    time.sleep(600)
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `stub_job` for jobs to run."""
    (tmp_path / "stub_job.py").write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]))
    return tmp_path


def job(name: str, action: str, lasts_s: float = 0.0, **words: object) -> Job:
    standby = " --standby" if words.get("standby") else ""
    return Job(
        name=name, module="stub_job", arguments=f"{{out}} {action} {lasts_s}{standby}", **({"seconds": 40.0} | words)
    )


def run(folder: Path, jobs: tuple[Job, ...], seconds: float = 120.0) -> list[str]:
    Campaign(folder / "out", folder / "work", time.monotonic() + seconds).run(jobs)
    return sorted(path.name for path in (folder / "out").iterdir())


def kept(folder: Path, name: str) -> str:
    return gzip.decompress((folder / "out" / f"{name}.jsonl.gz").read_bytes()).decode()


def test_records_and_log_are_kept_even_when_a_job_fails(stub: Path) -> None:
    files = run(stub, (job("a", "fine"), job("b", "fail"), job("c", "good")))
    assert files == ["a.jsonl.gz", "c.jsonl.gz", "log.txt.gz"]
    assert kept(stub, "a") == "fine"
    assert "===== b" in gzip.decompress((stub / "out" / "log.txt.gz").read_bytes()).decode()


def test_next_job_prepares_meanwhile_but_starts_only_when_told(stub: Path) -> None:
    jobs = (job("a", "fine", 2.0, head_start_s=0.2), job("b", "good", standby=True))
    begin = time.time()
    run(stub, jobs)
    started, told = (float((stub / "work" / f"b.jsonl.{mark}").read_text()) for mark in ("started", "go"))
    assert started - begin < 2.0 < told - begin


def test_hanging_job_is_stopped_with_its_children_and_its_records_are_kept(
    stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hw_validation.campaigns.runner._GRACE_S", 0.2)
    monkeypatch.setattr("hw_validation.campaigns.runner._LEAST_S", 0.5)
    begin = time.monotonic()
    run(stub, (job("a", "hang", seconds=2.0), job("b", "good")))
    assert time.monotonic() - begin < 20
    child = int(kept(stub, "a").removeprefix("hang"))
    assert not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]
    assert kept(stub, "b") == "good"


def test_fallback_runs_only_after_a_failure_without_records(stub: Path) -> None:
    fallback = job("spare", "good")
    assert "spare.jsonl.gz" in run(stub, (job("a", "fail", fallback=fallback),))
    assert "spare2.jsonl.gz" not in run(stub, (job("b", "fine", fallback=job("spare2", "good")),))


def test_without_time_nothing_is_started(stub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(stub, (job("a", "fine"),), seconds=20.0) == ["log.txt.gz"]
    assert "a: no time left" in capsys.readouterr().out


def test_named_jobs_of_several_campaigns_run_in_the_order_of_their_naming() -> None:
    chosen_jobs = select_jobs(["4gpus-first", "4gpus-hybrid"], ["mixtral-pairs-ep", "collectives"])
    assert [job.name for job in chosen_jobs] == ["mixtral-pairs-ep", "collectives"]
    assert select_jobs(["4gpus-hybrid"], []) == CAMPAIGNS["4gpus-hybrid"]
    with pytest.raises(InputError, match="no job 'qwen-one' in 4gpus-hybrid"):
        select_jobs(["4gpus-hybrid"], ["qwen-one"])


@pytest.mark.parametrize("name", sorted(CAMPAIGNS))
def test_every_job_has_arguments_that_its_module_takes(name: str) -> None:
    import shlex

    jobs = CAMPAIGNS[name]
    assert len(jobs) + 1 <= 8, "files that come back, the log included"
    for each in [*jobs, *(one.fallback for one in jobs if one.fallback)]:
        words = shlex.split(each.arguments.format(out="x.jsonl", seconds=1))
        if each.module == "hw_validation":
            assert_measures_something(words)
            continue
        parsed = PARSERS[each.module]().parse_args(words)
        assert ("--standby" in words) == each.standby
        if each.module.endswith("vllm_sweep"):
            assert set(parsed.sections.split(",")) <= set(SECTIONS)
        if each.module.endswith("llada"):
            assert len(chosen(RunSettings(), parsed.run)) >= 2


def assert_measures_something(words: list[str]) -> None:
    """The words of `moesim-hw run` are understood, and name an experiment of which a run is left."""
    from typer.main import get_command

    from hw_validation.command.main import app
    from hw_validation.command.run import _chosen
    from moesim.experiments import load_experiment

    command = get_command(app).commands[words[0]]  # pyright: ignore[reportAttributeAccessIssue]
    found = command.make_context(words[0], words[1:]).params
    assert _chosen(load_experiment(found["experiment"]), found["hardware"], found["only"])


def test_granted_time_runs_from_the_grant_even_if_it_is_read_late() -> None:
    line = go_line(5.0)
    time.sleep(0.3)
    left = wait_for_go(io.StringIO(line))
    assert left is not None and 4.0 < left < 4.8
    assert wait_for_go(io.StringIO("")) is None


def test_python_of_the_campaign_is_this_one(stub: Path) -> None:
    run(stub, (job("a", "fine"),))
    assert sys.executable in gzip.decompress((stub / "out" / "log.txt.gz").read_bytes()).decode()
