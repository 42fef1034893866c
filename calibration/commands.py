"""The verbs that calibration adds to the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.options import AsJson, CsvFile

if TYPE_CHECKING:
    from calibration.validation import ValidationTable

Jobs = Annotated[int, typer.Option(help="Processes (-1: all cores).")]


def validate(
    files: Annotated[
        list[str], typer.Argument(help="Files of measured rows: runs (CSV, JSON, Parquet) or kernel tables.")
    ],
    out_of_fold: Annotated[
        str | None, typer.Option(help="Folder of folds: predict each row with the constants that did not see it.")
    ] = None,
    parameters: Annotated[str | None, typer.Option(help="Parameter set (name or YAML) for all rows.")] = None,
    residuals: Annotated[
        str | None, typer.Option(help="Residual models (JSON of moesim residuals) that correct predictions.")
    ] = None,
    jobs: Jobs = -1,
    as_json: AsJson = False,
    csv: CsvFile = None,
) -> None:
    """Predict every row of files of measured runs and print the errors by group.

    Rows that cannot be predicted are listed with the reason; measurements that are known to be disturbed count, and
    are summed up without them too. --csv writes one row per prediction.
    Example: moesim validate serving.csv --out-of-fold folds/
    """
    from calibration.folds import read_folds
    from calibration.parameter_choice import named_parameters
    from calibration.residuals import read_residuals
    from calibration.validation import validate_files
    from moesim.cli.output import progress

    folds = read_folds(Path(out_of_fold)) if out_of_fold else None
    chosen = named_parameters(parameters) if parameters else None
    learned = read_residuals(Path(residuals)) if residuals else None
    with progress("predicting") as update:
        table = validate_files([Path(name) for name in files], jobs, update, folds, chosen, learned)
    _show_validation(table, as_json, csv)


def _show_validation(table: ValidationTable, as_json: bool, csv: str | None) -> None:
    from dataclasses import asdict

    from moesim.cli.output import print_json, print_table, stderr, write_csv

    if csv:
        write_csv(csv, [asdict(row) for row in table.rows])
    if as_json:
        print_json(table.to_dict())
    elif csv != "-":
        rows = [_percent(asdict(line)) for line in table.summary]
        print_table(f"Errors with {', '.join(table.parameter_sets)}", rows, "Shares of the measured value.")
        if sound := [_percent(asdict(line)) for line in table.summary_undisturbed if line.group == "all"]:
            print_table("All without disturbed measurements", sound)
            for reason, count in _reasons([row.flaw for row in table.rows if row.flaw]).items():
                stderr().print(f"disturbed: {count} values: {reason}", soft_wrap=True)
        for item in table.corrections:
            gain = f"{item.physics:.1%} without, {item.corrected:.1%} with it on series left out"
            stderr().print(f"residual model ({item.model}) on for {item.metric}: {gain}", soft_wrap=True)
        for reason, count in _reasons([item.reason for item in table.skipped]).items():
            stderr().print(f"skipped {count} rows: {reason}", soft_wrap=True)


def _percent(line: dict[str, object]) -> dict[str, object]:
    shares = {"mape", "median_ape", "p90_ape", "bias", "coverage_90"}
    return {key: f"{value:.1%}" if key in shares else value for key, value in line.items()}


def _reasons(reasons: list[str]) -> dict[str, int]:
    counted = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    return dict(sorted(counted.items(), key=lambda item: -item[1]))


def calibrate(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Files of measured runs and kernel tables of one GPU.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Parameter set to write (YAML), or folder of sets or folds.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Parameter set of the priors (default: the best known one).")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipe YAML instead of files; 'shipped' for all shipped sets. Repeatable.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Folder that recipes' files are relative to. Repeatable.")
    ] = None,
    cross_validate: Annotated[
        str | None, typer.Option(help="Leave out in turn: configuration, model, gpu or series; writes folds to -o.")
    ] = None,
    report: Annotated[str | None, typer.Option(help="Write a report for people (HTML) to this file or folder.")] = None,
    bootstrap: Annotated[int, typer.Option(help="Also resample the rows this often for standard errors.")] = 0,
    state: Annotated[
        str | None, typer.Option(help="Folder that keeps finished tables and rounds: an interrupted run resumes.")
    ] = None,
    jobs: Jobs = -1,
    as_json: AsJson = False,
) -> None:
    """Fit the constants of the model to measured runs, counters and kernel tables; every estimate with its error.

    Example: moesim calibrate my_runs.csv trace.json.gz -o mine.yaml, then moesim simulate --parameters mine.yaml ...
    """
    from calibration.calibrate_command import CalibrateRequest, run_calibrate
    from moesim.cli.output import print_json, progress

    request = CalibrateRequest(
        files=tuple(runs or ()),
        output=output,
        base=base,
        recipes=tuple(recipe or ()),
        data=tuple(data or ()),
        cross_validate=cross_validate,
        report=report,
        bootstrap=bootstrap,
        state=state,
        jobs=jobs,
    )
    with progress("calibrating") as update:
        answers = run_calibrate(request, update)
    if as_json:
        print_json([item.to_dict() for item in answers])
    else:
        for item in answers:
            item.show()
