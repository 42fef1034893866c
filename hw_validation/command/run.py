"""`moesim-hw run`: measure an experiment, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hw_validation.command.fetch import MODELS_DIR

if TYPE_CHECKING:
    from hw_validation.experiment.runs import PlannedRun
    from moesim.experiments import Experiment


def run(
    experiment: Annotated[str, typer.Argument(help="An experiment YAML, or the name of a shipped one.")],
    out: Annotated[Path, typer.Option(help="Log of records (JSON lines); runs that it holds are not repeated.")],
    models_dir: Annotated[Path, typer.Option(help="Folder of the snapshots.")] = MODELS_DIR,
    work_dir: Annotated[Path, typer.Option(help="Folder of server logs and results.")] = Path("hw-work"),
    hosts: Annotated[str, typer.Option(help="Further nodes for multi-node runs, by commas, reached by ssh.")] = "",
    address: Annotated[str, typer.Option(help="This node's address as the others see it.")] = "127.0.0.1",
    hardware: Annotated[str, typer.Option(help="Measure only the runs planned for this accelerator.")] = "",
    only: Annotated[str, typer.Option(help="Measure only runs whose key contains this.")] = "",
    budget_minutes: Annotated[float | None, typer.Option(help="Begin no run after this time.")] = None,
    start_timeout_s: Annotated[float, typer.Option(help="Give up on a server that is not ready by then.")] = 1800.0,
    sample_period_s: Annotated[float, typer.Option(help="Seconds between samples of the GPUs.")] = 0.5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, start nothing.")] = False,
) -> None:
    """Start the servers of an experiment, measure its runs and append one record for each.

    Killed or interrupted at any moment, the same command goes on with the first run that is not recorded. A server
    that is not the planned one (model, sizes, engine mode are asked of it) ends the command with exit code 2.
    """
    import time

    from hw_validation.server.execute import measure_runs
    from hw_validation.server.options import RunOptions
    from moesim.experiments import load_experiment

    loaded = load_experiment(experiment)
    if dry_run:
        from hw_validation.command.plan import plan

        plan(experiment, models_dir=models_dir, out=out, hardware=hardware, dry_run=True)
        return
    runs = _chosen(loaded, hardware, only)
    stop_s = time.monotonic() + 60 * budget_minutes if budget_minutes is not None else float("inf")
    options = RunOptions(
        models_dir=models_dir,
        work_dir=work_dir,
        hosts=tuple(host for host in hosts.split(",") if host),
        address=address,
        start_timeout_s=start_timeout_s,
        sample_period_s=sample_period_s,
        stop_s=stop_s,
    )
    outcome = measure_runs(runs, out, options)
    typer.echo(f"{outcome.recorded} runs recorded, {outcome.resumed} were there, {len(outcome.failed)} failed -> {out}")
    if outcome.failed:
        raise typer.Exit(1)
    if not outcome.complete:
        raise typer.Exit(3)


def _chosen(experiment: Experiment, hardware: str, only: str) -> list[PlannedRun]:
    """The runs to measure; those that cannot be are named on stderr."""
    from hw_validation.experiment.runs import SkippedRun, list_runs
    from moesim.cli.output import stderr
    from moesim.errors import InputError
    from moesim.specs.catalog import get_hardware

    runs: list[PlannedRun] = []
    for item in list_runs(experiment):
        if isinstance(item, SkippedRun):
            stderr().print(f"cannot be measured: {item.name}: {item.reason}", soft_wrap=True, markup=False)
        elif only in item.key and (not hardware or item.server.hardware == get_hardware(hardware).name):
            runs.append(item)
    if not runs:
        chosen = " ".join(word for word in (hardware, only) if word)
        raise InputError(f"experiment: has no run to measure{f' that is {chosen!r}' if chosen else ''}")
    return runs
