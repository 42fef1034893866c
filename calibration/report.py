"""One self-contained HTML page about a calibration: what was fitted to what, how well, and what is worst and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration.parameter_file import write_file
from calibration.pipeline import Calibration
from calibration.profile_calibration import profile_observations, profile_rows
from calibration.report_rows import estimate_rows, group_errors, row_errors, worst_rows
from calibration.set_report import SetReport

_TEMPLATE = Path(__file__).parent / "report.html.j2"
_HTML = {".html", ".htm"}


def write_report(
    done: Calibration, path: Path, bootstrap: Mapping[str, float] | None = None, command: str = ""
) -> Path:
    """Write the page: to `path` when it is an HTML file, else to `<recipe>.html` in that folder.

    Args:
        bootstrap: standard errors of resampled fits by constant, where they were asked for.
        command: the command line that made the calibration.

    Raises:
        InputError: the file cannot be written.
    """
    target = path if path.suffix in _HTML else path / f"{done.recipe.name}.html"
    write_file(target, render(done, dict(bootstrap or {}), command))
    return target


def render(done: Calibration, bootstrap: dict[str, float], command: str) -> str:
    """The page's HTML; every text from files is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update({"percent": _percent, "number": _number})
    return environment.get_template(_TEMPLATE.name).render(**_content(done, bootstrap, command))


def _content(done: Calibration, bootstrap: dict[str, float], command: str) -> dict[str, Any]:
    content: dict[str, Any] = {
        "recipe": done.recipe,
        "command": command,
        "estimates": estimate_rows(done, bootstrap),
        "bootstrapped": bool(bootstrap),
        "sets": [SetReport.of(item, done) for item in done.sets.values()],
        "rejected": sorted(done.rejected.items(), key=lambda item: -item[1]),
        "inputs": next(iter(done.sets.values())).evidence.inputs if done.sets else {},
        "kernels": _kernels(done),
        "groups": [],
        "worst": [],
        "parity": "",
        "residuals": "",
        "profiles": profile_rows(done.profiles),
        "observations": profile_observations(done.profiles),
        "rows": 0,
        "scale": float("nan"),
    }
    if done.run_fit is not None:
        from calibration.report_figures import parity_figure, residual_figure

        errors = row_errors(done.run_fit)
        content.update(
            groups=group_errors(errors),
            worst=worst_rows(errors),
            parity=parity_figure(errors),
            residuals=residual_figure(errors),
            rows=len(errors.fitted),
            scale=done.run_fit.result.scale,
        )
    return content


def _kernels(done: Calibration) -> list[dict[str, Any]]:
    """Every kernel family: errors against its table, and the shares of the data sheet that it achieves."""
    fits = done.kernel_fit.fits if done.kernel_fit else ()
    return [
        {
            "family": fit.family,
            "table": fit.table,
            "rows": fit.rows,
            "median": math.expm1(fit.median_error),
            "p90": math.expm1(fit.error),
            "shares": [(item.name, item.value) for item in fit.estimates if item.name.endswith("_efficiency")],
            "bounds": [item.name for item in fit.estimates if item.at_bound],
        }
        for fit in fits
    ]


def _percent(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.1%}"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else ""
