"""`moesim experiment`: all runs of an experiment file, resumable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.options import AsJson, CsvFile

if TYPE_CHECKING:
    from moesim.experiments import Experiment, FinishedRun


def experiment(
    name: Annotated[str | None, typer.Argument(help="Shipped name or a YAML file; without it the list.")] = None,
    output: Annotated[
        str | None, typer.Option(help="Append each finished run to this JSON-lines file; runs in it are not repeated.")
    ] = None,
    as_json: AsJson = False,
    csv: CsvFile = None,
) -> None:
    """List the shipped experiments, or simulate every run of one.

    Example: moesim experiment single_gpu --output single_gpu.jsonl
    """
    from moesim.experiments import load_experiment

    if name is None:
        _list(as_json, csv)
        return
    chosen = load_experiment(name)
    _print(chosen, _run(chosen, output), as_json, csv)


def _list(as_json: bool, csv: str | None) -> None:
    from moesim.cli.output import print_rows
    from moesim.experiments import list_experiments, load_experiment

    found = [(name, load_experiment(name)) for name in list_experiments()]
    rows = [{"experiment": name, "runs": item.size, "description": item.description} for name, item in found]
    print_rows("Experiments", rows, {"experiments": rows}, as_json, csv, "moesim experiment NAME runs one")


def _run(chosen: Experiment, output: str | None) -> list[FinishedRun]:
    from pathlib import Path

    from moesim.cli.output import progress, stderr
    from moesim.experiments import finished_runs, run_experiment

    path = Path(output) if output else None
    known = finished_runs(path) if path else {}
    runs: list[FinishedRun] = []
    with progress(chosen.name) as update:
        for run in run_experiment(chosen, known, path):
            update(len(runs), chosen.size, str(run.words["model"]))
            runs.append(run)
    repeated = sum(run.digest in known for run in runs)
    if repeated:
        stderr().print(f"{repeated} of {len(runs)} runs were taken from {output}")
    return runs


def _print(chosen: Experiment, runs: list[FinishedRun], as_json: bool, csv: str | None) -> None:
    from moesim.cli.output import print_rows

    rows: list[dict[str, Any]] = [run.row for run in runs]
    document = {"experiment": chosen.name, "rows": rows}
    print_rows(f"{chosen.name}: {chosen.description}", rows, document, as_json, csv)
