"""Measure a machine with vLLM on random weights: a list of jobs, one after the other, within a number of seconds.

python -m hw_validation.campaigns.runner first --out OUT_DIR --seconds 570

Campaigns are listed in `jobs.py` (one GPU) and `multi_gpu.py`. Run from the root of the source tree with vLLM
importable. Every job writes into a working folder; when it ends, however it ends, its records are appended to
OUT_DIR/NAME.jsonl.gz and OUT_DIR/log.txt is complete up to there. A job that outlasts its time is stopped with all
processes that it started.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hw_validation.campaigns.jobs import CAMPAIGNS as ONE_GPU
from hw_validation.campaigns.jobs import Job
from hw_validation.campaigns.multi_gpu import CAMPAIGNS as SEVERAL_GPUS
from hw_validation.environment import query_gpu
from hw_validation.standby import go_line
from moesim.errors import InputError

CAMPAIGNS = ONE_GPU | SEVERAL_GPUS
_GRACE_S = 8.0
_LEAST_S = 30.0
_POLL_S = 0.1
_OK = (0, 3)
_SHOWN = ("ready after", "records after", ": failed", "error:", "Error", "tok/s", "prepared after")


class Campaign:
    """Runs jobs into `out` until `deadline_s` (of `time.monotonic`)."""

    def __init__(self, out: Path, work: Path, deadline_s: float) -> None:
        self.out = out
        self.work = work
        self.deadline_s = deadline_s
        self._waiting: dict[str, subprocess.Popen[bytes]] = {}
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, less what stopping a job may take."""
        return self.deadline_s - time.monotonic() - _GRACE_S

    def run(self, jobs: tuple[Job, ...]) -> None:
        """Run `jobs` in turn; those for which less than half a minute is left are named and left out."""
        try:
            for place, job in enumerate(jobs):
                following = jobs[place + 1] if place + 1 < len(jobs) else None
                self._run_job(job, following)
        finally:
            for process in self._waiting.values():
                _stop(process)
            self._collect_log()

    def _run_job(self, job: Job, following: Job | None) -> None:
        seconds = min(job.seconds, self.left_s)
        if seconds < _LEAST_S:
            self._say(f"{job.name}: no time left")
            return
        code = self._run_process(job, seconds, following)
        kept = self._keep(job)
        self._say(f"{job.name}: exit {code}, {kept} bytes, {self.left_s:.0f} s left; {query_gpu()}")
        if job.fallback and code not in _OK and not kept:
            self._run_job(job.fallback, following)

    def _run_process(self, job: Job, seconds: float, following: Job | None) -> int:
        begin = time.monotonic()
        process = self._waiting.pop(job.name, None) or self._start(job, seconds)
        if job.standby and process.stdin:
            _tell(process.stdin, go_line(seconds))
        while process.poll() is None and time.monotonic() - begin < seconds + _GRACE_S:
            if following and time.monotonic() - begin > job.head_start_s:
                self._prepare(following, self.left_s - seconds)
            time.sleep(_POLL_S)
        return _stop(process)

    def _prepare(self, job: Job, left_s: float) -> None:
        """Start a job that will wait for its turn, once, if `left_s` is enough for it to get one."""
        if job.standby and job.name not in self._waiting and left_s > _LEAST_S:
            self._waiting[job.name] = self._start(job, left_s)

    def _start(self, job: Job, seconds: float) -> subprocess.Popen[bytes]:
        words = job.arguments.format(out=self._path(job), seconds=int(seconds))
        ranks = [sys.executable, "-m", "hw_validation.ranks", str(job.ranks), "--"] if job.ranks > 1 else []
        command = [*ranks, *shlex.split(job.wrapper), sys.executable, "-m", job.module, *shlex.split(words)]
        with self._log(job).open("ab") as log:
            log.write(f"\n===== {job.name}: {shlex.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _path(self, job: Job) -> Path:
        return self.work / f"{job.name}.{job.suffix}"

    def _log(self, job: Job) -> Path:
        return self.work / f"{job.name}.log"

    def _keep(self, job: Job) -> int:
        """Append the job's records to a compressed file in `out`; returns their size in bytes."""
        path = self._path(job)
        if not path.exists():
            return 0
        with path.open("rb") as source, gzip.open(self.out / f"{path.name}.gz", "wb", compresslevel=9) as target:
            shutil.copyfileobj(source, target)
        self._collect_log()
        return path.stat().st_size

    def _collect_log(self) -> None:
        with gzip.open(self.out / "log.txt.gz", "wb") as target:
            for log in sorted(self.work.glob("*.log"), key=lambda path: path.stat().st_mtime):
                target.write(log.read_bytes())

    def _say(self, text: str) -> None:
        print(text, flush=True)


def _tell(stream: IO[bytes], line: str) -> None:
    try:
        stream.write(line.encode())
        stream.flush()
    except BrokenPipeError:
        return


def _stop(process: subprocess.Popen[bytes]) -> int:
    """End the process and everything in its session; returns its exit code."""
    if process.stdin:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue
    return process.wait()


def shown_lines(log: Path) -> Iterator[str]:
    """The lines of a log that a person wants to see first."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if any(mark in line for mark in _SHOWN):
            yield line[:300]


def select_jobs(campaigns: list[str], only: list[str]) -> tuple[Job, ...]:
    """The campaigns' jobs one after the other, or those named by `only` in its order (the first of each name).

    Raises:
        InputError: No campaign given has a job of that name.
    """
    jobs = tuple(job for campaign in campaigns for job in CAMPAIGNS[campaign])
    by_name = {job.name: job for job in reversed(jobs)}
    unknown = [name for name in only if name not in by_name]
    if unknown:
        raise InputError(f"--only: no job {unknown[0]!r} in {', '.join(campaigns)} (it has {', '.join(by_name)})")
    return tuple(by_name[name] for name in only) if only else jobs


def _names() -> str:
    return f"one or more of {', '.join(sorted(CAMPAIGNS))}"


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("campaigns", choices=sorted(CAMPAIGNS), nargs="+", metavar="CAMPAIGN", help=_names())
    parser.add_argument("--out", type=Path, required=True, help="folder for compressed records and the log")
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/moesim-campaign"), help="folder for files in the making"
    )
    parser.add_argument("--seconds", type=float, required=True, help="everything ends within this time")
    parser.add_argument("--only", default="", help="names of jobs in the order to run them, separated by commas (all)")
    options = parser.parse_args(arguments)
    try:
        jobs = select_jobs(options.campaigns, [name for name in options.only.split(",") if name])
    except InputError as error:
        parser.error(str(error))
    work = options.work / "+".join(options.campaigns)
    Campaign(options.out, work, time.monotonic() + options.seconds).run(jobs)
    for log in sorted(work.glob("*.log")):
        print(f"--- {log.stem}")
        print("\n".join(list(shown_lines(log))[-12:]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
