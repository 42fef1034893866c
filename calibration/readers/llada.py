"""The LLaDA engine's JSON document (schema moesim.llada/1): a list of runs, each whole in itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from calibration.readers.words import site_of
from calibration.schema import Hardware, Measurement, Provenance, Software, check_measurement
from calibration.sources import LIMITS, Limits, check_number, hash_file, read_json
from moesim.errors import InputError

SCHEMA = "moesim.llada/1"
_CODE = "moesim"
"""The program that writes such documents, in the simulator's words (`moesim.specs.scenario.DenoisingCode`)."""

_TORCH_NORM = "torch_norm"
"""Flag of documents from before the engine had a norm kernel of its own: replayed that costs 2 % of a forward."""


class _Settings(msgspec.Struct, frozen=True):
    prompt_len: int
    generation_len: int
    steps: int
    block_len: int
    batch: int
    cfg_scale: float
    cache: str
    expert_execution: str
    graphs: bool
    threshold: float | None = None
    cache_refresh: int = 0
    expert_loads: bool = False
    products: str = "blas"

    @property
    def configuration(self) -> str:
        """All of it but what adds a count or chose equal products: repeats, also on other starts, have the same."""
        words = msgspec.to_builtins(self)
        return " ".join(f"{name}={value}" for name, value in words.items() if name not in ("expert_loads", "products"))


class _Parallel(msgspec.Struct, frozen=True):
    ranks: int
    tp: int
    ep: int


class _Run(msgspec.Struct, frozen=True):
    """The fields that the schema of measurements has places for; the rest stays in `tables`."""

    model: str
    architecture: dict[str, Any]
    weights: str
    dtype: str
    settings: _Settings
    parallel: _Parallel
    operators: str
    environment: dict[str, Any]
    peak_memory_bytes: int
    measured: dict[str, float]
    repeats: list[dict[str, Any]]
    layers_reduced_from: int | None = None
    floor_share: float | None = None
    expert_loads: dict[str, Any] | None = None


class _Document(msgspec.Struct):
    """`flags`: known flaws of all its records."""

    schema: str
    records: list[_Run]
    flags: tuple[str, ...] = ()


def read(path: Path, limits: Limits = LIMITS) -> list[Measurement]:
    """All runs of the document. Raises InputError naming file and record."""
    document = read_json(path, _Document, limits)
    if document.schema != SCHEMA:
        raise InputError(f"{path}: schema is {document.schema[:40]!r}, must be {SCHEMA!r}")
    sha256 = hash_file(path)
    return [
        _to_measurement(
            run,
            f"{path}: records[{index}]",
            Provenance(file=str(path), sha256=sha256, place=f"records[{index}]"),
            document.flags,
        )
        for index, run in enumerate(document.records)
    ]


def _to_measurement(run: _Run, place: str, source: Provenance, flags: tuple[str, ...]) -> Measurement:
    settings, parallel = run.settings, run.parallel
    device, layers = str(run.environment.get("device", "")), run.architecture.get("num_layers")
    if not isinstance(layers, int):
        raise InputError(f"{place}: architecture.num_layers is {str(layers)[:40]!r}, must be a whole number")
    replicas = max(parallel.ranks // max(parallel.tp, 1), 1)
    request = {
        "model": run.model,
        "hardware": device,
        "gpus": parallel.ranks,
        "tp": parallel.tp,
        "dp": replicas,
        "ep": parallel.ep,
        "input_len": settings.prompt_len,
        "generation_len": settings.generation_len,
        "steps": settings.steps,
        "block_len": settings.block_len,
        "cfg_scale": settings.cfg_scale,
        "cache": settings.cache,
        "expert_execution": settings.expert_execution,
        "enforce_eager": not settings.graphs,
        "concurrency": settings.batch * replicas,
        "max_num_seqs": settings.batch,
        "num_prompts": settings.batch * replicas * max(len(run.repeats), 1),
        "engine_version": _CODE,
    }
    versions = {
        name: str(run.environment[name])
        for name in ("python", "torch", "triton", "cuda", "hip")
        if run.environment.get(name)
    }
    file = Path(source.file)
    item = Measurement(
        id=f"{file.parent.name}/{file.name}#{source.place}",
        kind="diffusion",
        model=run.model,
        layers=layers,
        weights=run.weights,
        hardware=Hardware(accelerator=device, devices=parallel.ranks),
        software=Software(engine="llada", engine_version=SCHEMA.rpartition("/")[2], versions=versions),
        flags={
            "operators": run.operators,
            "dtype": run.dtype,
            "kernels_graph": settings.graphs,
            "products": settings.products,
        },
        request=request,
        point=msgspec.to_builtins(settings),
        values=_values(run, place),
        tables={"repeats": run.repeats} | ({"expert_loads": [run.expert_loads]} if run.expert_loads else {}),
        labels=(*flags, *_labels(run, flags)),
        site=site_of(run.environment),
        configuration=f"{run.model} on {parallel.ranks}: {settings.configuration}",
        provenance=source,
    )
    return check_measurement(item, place)


def _labels(run: _Run, flags: tuple[str, ...]) -> tuple[str, ...]:
    """What sets a run apart from the others of its settings: see `calibration.readers.measured` for those skipped."""
    settings = run.settings
    marks = {
        "layers_reduced": run.layers_reduced_from is not None,
        "forwards_vary": settings.threshold is not None or settings.cache_refresh > 0,
        "other_host_calls": _TORCH_NORM in flags and settings.expert_execution == "grouped" and not settings.graphs,
        "expert_loads_counted": settings.expert_loads,
        f"operators_{run.operators}": run.operators not in ("triton", "loop"),
    }
    return tuple(name for name, holds in marks.items() if holds)


def _values(run: _Run, place: str) -> dict[str, float]:
    values = {**run.measured, "peak_memory_bytes": float(run.peak_memory_bytes)}
    if run.floor_share is not None:
        values["floor_share"] = run.floor_share
    for name, value in values.items():
        if check_number(value, f"{place}: {name}") < 0:
            raise InputError(f"{place}: {name} is {value}, must not be negative")
    return values
