"""A fitted set in a few tables: estimates with errors, what no data moved, and errors on rows left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from moesim.specs.parameters import Parameter, ParameterSet

if TYPE_CHECKING:
    from calibration.pipeline import Calibration


@dataclass(frozen=True, slots=True)
class SetReport:
    """One set that `moesim calibrate` made. `rejected`: reason -> measured values left out of the fit.

    `bootstrap`: standard errors from resampled fits by constant; empty when they were not asked for.
    """

    parameters: ParameterSet
    rejected: dict[str, int]
    strongest: list[tuple[str, str, float]]
    scale: float
    bootstrap: dict[str, float]

    @staticmethod
    def of(parameters: ParameterSet, done: Calibration, bootstrap: Mapping[str, float] | None = None) -> SetReport:
        """The report of one of a calibration's sets."""
        scale = done.run_fit.result.scale if done.run_fit else 0.0
        return SetReport(parameters, dict(done.rejected), _strongest(parameters), scale, dict(bootstrap or {}))

    def rows(self) -> list[dict[str, Any]]:
        """One row a constant."""
        found = [_row("", name, item) for name, item in self.parameters.parameters.items()]
        sites = self.parameters.sites.items()
        found += [_row(site, name, item) for site, constants in sites for name, item in constants.items()]
        if not self.bootstrap:
            return found
        return [{**row, "bootstrap_error": self.bootstrap.get(row["name"])} for row in found]

    def to_dict(self) -> dict[str, Any]:
        """The JSON contract of `moesim calibrate`."""
        return {
            "name": self.parameters.name,
            "parameters": self.rows(),
            "evidence": msgspec.to_builtins(self.parameters.evidence),
            "rejected": self.rejected,
            "strongest_correlations": [{"first": a, "second": b, "correlation": c} for a, b, c in self.strongest],
            "residual_scale": self.scale,
        }

    def show(self) -> None:
        """Print for people: what was fitted, what was not, how wrong it is."""
        from moesim.cli.output import print_table, stderr

        moved = [row for row in self.rows() if row["status"] in {"fitted", "at_bound"}]
        print_table(f"{self.parameters.name}: constants moved by the data", moved or self.rows())
        evidence = self.parameters.evidence
        levels = [{"left_out": kind, **msgspec.to_builtins(level)} for kind, level in evidence.errors.items()]
        if levels:
            print_table("90 % of rows left out stay within (share)", levels)
        kernels = [
            {"kernel": name, "rows": item.rows, "90 % within": item.error}
            for name, item in self.parameters.kernels.items()
        ]
        if kernels:
            print_table("Kernels against their tables (share)", kernels)
        quiet = [row["name"] for row in self.rows() if row["status"] == "prior_only"]
        console = stderr()
        if quiet:
            console.print(f"prior only (no data moved them): {', '.join(quiet)}", soft_wrap=True)
        bound = [row["name"] for row in self.rows() if row["status"] == "at_bound"]
        if bound:
            console.print(f"at a bound: {', '.join(bound)}", soft_wrap=True)
        for first, second, value in self.strongest:
            console.print(f"correlation {value:+.2f}: {first}, {second}", soft_wrap=True)
        for reason, count in self.rejected.items():
            console.print(f"left out {count} measured values: {reason}", soft_wrap=True)


def _row(site: str, name: str, item: Parameter) -> dict[str, Any]:
    return {
        "name": f"{name}@{site}" if site else name,
        "value": item.value,
        "relative_error": item.log_sd,
        "status": item.status,
        "unit": item.unit,
    }


def _strongest(parameters: ParameterSet, count: int = 5) -> list[tuple[str, str, float]]:
    names, rows = parameters.correlation.names, parameters.correlation.rows
    pairs = [(names[i], names[j], rows[i][j]) for i in range(len(names)) for j in range(i)]
    return [pair for pair in sorted(pairs, key=lambda pair: -abs(pair[2]))[:count] if abs(pair[2]) > 0.5]
