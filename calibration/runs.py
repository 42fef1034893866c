"""One measured run: what ran, in the simulator's words, and what was measured, under the file's own names."""

from __future__ import annotations

import msgspec

from moesim.scenarios import Request


class StepPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One engine step: `decodes` sequences with `context_tokens` cached tokens in all, and `chunks` prompts of
    together `chunk_tokens` new tokens that attend `pairs` (query, key) pairs among `kv_tokens` keys.
    """

    decodes: int = 0
    context_tokens: float = 0.0
    chunks: int = 0
    chunk_tokens: int = 0
    pairs: float = 0.0
    kv_tokens: float = 0.0


class MeasuredRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A row of a file of measurements.

    `measured` maps the file's column names to values. `configuration` and `series` name what is left out together
    in cross-validation (empty: the row alone). `site`: the machine, where its host or fabric is its own.
    `step`: a single engine step instead of a whole run; `layers`: built ones, where fewer than the model's were.
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
    step: StepPoint | None = None
    layers: int | None = None

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
