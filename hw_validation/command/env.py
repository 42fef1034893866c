"""`moesim-hw env`: the machine, and what is missing on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
) -> None:
    """Show GPUs, driver, links, clocks and versions, and name the tools that are absent."""
    import json

    from hw_validation.machine.report import machine_report
    from moesim.cli.output import print_json, write_atomic

    report = machine_report()
    if out is not None:
        write_atomic(out, json.dumps(report, indent=2) + "\n")
    if as_json:
        print_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    from moesim.cli.output import print_table, stdout

    if report["gpus"]:
        print_table("GPUs", report["gpus"])
    else:
        stdout().print("No GPU: neither nvidia-smi, amd-smi nor rocm-smi shows one.")
    if report["topology"]:
        stdout().print(report["topology"], markup=False)
    print_table("Host", [{"what": name, "value": str(value)} for name, value in report["host"].items()])
    print_table("Versions", [{"package": name, "version": value} for name, value in report["versions"].items()])
    for line in report["missing"]:
        stdout().print(f"- {line}", markup=False)
