"""The verb `moesim residuals`: does a correction of what physics leaves help on series that it has not seen?"""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli import options as o


def residuals(
    files: Annotated[list[str], typer.Argument(help="Files of measured runs.")],
    out_of_fold: Annotated[
        str | None, typer.Option(help="Folder of folds: take predictions of constants that did not see the row.")
    ] = None,
    parameters: Annotated[str | None, typer.Option(help="Parameter set (name or YAML) for all rows.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Write the models that help (JSON) for moesim validate.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes (-1: all cores).")] = -1,
    as_json: o.AsJson = False,
    csv: o.CsvFile = None,
) -> None:
    """Compare predictions with and without a learned correction, whole series left out.

    Ridge and gradient boosting on sizes and on the shares of memory, compute, network, launch and host. A correction
    is on only where the mean error falls by more than the standard error of that fall; both numbers are printed.
    Example: moesim residuals serving.csv --out-of-fold folds/ -o residuals.json
    """
    from pathlib import Path

    import msgspec

    from calibration.folds import read_folds
    from calibration.parameter_choice import named_parameters
    from calibration.readers import read_runs
    from calibration.residuals import learn_residuals, write_residuals
    from moesim.cli.output import deliver, print_table, progress

    runs = [run for name in files for run in read_runs(Path(name))[0]]
    folds = read_folds(Path(out_of_fold)) if out_of_fold else None
    with progress("simulating") as update:
        found = learn_residuals(runs, folds, named_parameters(parameters) if parameters else None, jobs, update)
    if output:
        write_residuals(Path(output), found)
    chosen = {(item.comparison.metric, item.comparison.model) for item in found.models.values()}
    rows = [{**msgspec.to_builtins(item), "on": (item.metric, item.model) in chosen} for item in found.comparisons]

    def show() -> None:
        print_table("Mean |log error| on series left out, without and with a correction", rows)

    deliver(rows, lambda: rows, show, as_json, csv)
