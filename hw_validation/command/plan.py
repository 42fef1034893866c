"""`moesim-hw plan`: what an experiment would run, its cost, and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hw_validation.command.fetch import MODELS_DIR


def plan(
    experiment: Annotated[str, typer.Argument(help="An experiment YAML, or the name of a shipped one.")],
    models_dir: Annotated[Path, typer.Option(help="Folder of the snapshots.")] = MODELS_DIR,
    out: Annotated[Path | None, typer.Option(help="Log of an earlier run: what it holds is not planned again.")] = None,
    hardware: Annotated[str, typer.Option(help="Plan only the runs for this accelerator.")] = "",
    start_s: Annotated[float, typer.Option(help="Seconds a server takes to start, weights not counted.")] = 105.0,
    load_bytes_per_s: Annotated[float, typer.Option(help="Rate at which weights are read.")] = 2e9,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands only, predict no cost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the runs of an experiment, the GPU minutes that the simulator expects, and the exact commands.

    Example: moesim-hw plan phase1_single_gpu
    """
    from hw_validation.experiment.cost import CostRates
    from hw_validation.experiment.planning import make_plan
    from moesim.cli.output import print_json, progress
    from moesim.experiments import load_experiment
    from moesim.specs.catalog import get_hardware

    loaded = load_experiment(experiment)
    rates = None if dry_run else CostRates(start_s=start_s, load_bytes_per_s=load_bytes_per_s)
    with progress("predicting") as update:
        name = get_hardware(hardware).name if hardware else ""
        planned = make_plan(loaded, models_dir, out, rates, update, name)
    if as_json:
        print_json(planned.to_dict())
    else:
        _show(planned)


def _show(planned: Any) -> None:
    from moesim.cli.output import print_table, stderr, stdout

    console = stdout()
    rows = planned.rows()
    if rows:
        print_table(f"{planned.name}: {planned.description}", rows)
    else:
        console.print(f"{planned.name}: {planned.description}", soft_wrap=True)
    if planned.gpu_minutes is not None:
        console.print(
            f"{planned.num_runs} runs, {planned.gpu_minutes:.0f} GPU minutes, {planned.wall_minutes:.0f} minutes"
        )
    if planned.feeds:
        console.print(f"Feeds: {planned.feeds}", soft_wrap=True)
    for server in planned.servers:
        console.print(f"\n# {server.name}", markup=False)
        for line in server.commands:
            console.print(line, soft_wrap=True, markup=False)
    for line in planned.commands:
        console.print(line, soft_wrap=True, markup=False)
    for skipped in planned.skipped:
        stderr().print(f"cannot be measured: {skipped.name}: {skipped.reason}", soft_wrap=True, markup=False)
