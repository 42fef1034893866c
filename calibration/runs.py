"""One measured run: what ran, in the simulator's words, and what was measured, under the file's own names."""

from __future__ import annotations

import msgspec

from moesim.scenarios import Request


class MeasuredRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of a file of measurements.

    `measured` maps the file's column names to values. `configuration` and `series` name what is left out together
    in cross-validation (empty: the row alone). `site`: the machine, where its host or fabric is its own.
    """

    id: str
    engine: str
    request: Request
    measured: dict[str, float]
    flags: tuple[str, ...] = ()
    configuration: str = ""
    series: str = ""
    site: str = ""
    noise: float = 1.0

    @property
    def group(self) -> str:
        """GPU, engine and model: rows that share a summary line."""
        return f"{self.request.hardware} / {self.engine} / {self.request.model}"


class SkippedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row that cannot be predicted, and why."""

    id: str
    file: str
    reason: str


class RunFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The project's own file of measured runs (YAML or JSON)."""

    schema_version: int
    runs: tuple[MeasuredRun, ...]
