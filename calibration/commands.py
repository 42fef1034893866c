"""The verbs that calibration adds to the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli.options import AsJson, CsvFile


def validate(
    files: Annotated[list[str], typer.Argument(help="Files of measured runs (CSV of a known format, or YAML/JSON).")],
    jobs: Annotated[int, typer.Option(help="Processes (-1: all cores).")] = -1,
    as_json: AsJson = False,
    csv: CsvFile = None,
) -> None:
    """Predict every row of files of measured runs and print the errors by group.

    Rows that cannot be predicted are listed with the reason. --csv writes one row per prediction.
    """
    from dataclasses import asdict
    from pathlib import Path

    from calibration.validation import validate_files
    from moesim.cli.output import print_json, print_table, progress, stderr, write_csv

    with progress("predicting") as update:
        table = validate_files([Path(name) for name in files], jobs, update)
    if csv:
        write_csv(csv, [asdict(row) for row in table.rows])
    if as_json:
        print_json(table.to_dict())
    elif csv != "-":
        rows = [_percent(asdict(line)) for line in table.summary]
        print_table(f"Errors with {', '.join(table.parameter_sets)}", rows, "Shares of the measured value.")
        for reason, count in _reasons([item.reason for item in table.skipped]).items():
            stderr().print(f"skipped {count} rows: {reason}", soft_wrap=True)


def _percent(line: dict[str, object]) -> dict[str, object]:
    shares = {"mape", "median_ape", "p90_ape", "bias", "coverage_90"}
    return {key: f"{value:.1%}" if key in shares else value for key, value in line.items()}


def _reasons(reasons: list[str]) -> dict[str, int]:
    counted = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    return dict(sorted(counted.items(), key=lambda item: -item[1]))
