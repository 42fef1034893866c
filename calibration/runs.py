"""One measured run: what ran, in the simulator's words, and what was measured, under the file's own names."""

from __future__ import annotations

import msgspec

from moesim.scenarios import Request


class MeasuredRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of a file of measurements.

    `measured` maps the file's column names to values; `engine` names software and version; `gpu` and `model`
    are those of the request, for grouping.
    """

    id: str
    engine: str
    request: Request
    measured: dict[str, float]
    flags: tuple[str, ...] = ()

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
