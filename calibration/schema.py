"""The schema of measurements, version 1: one record type for every kind of run (see calibration/README.md)."""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import msgspec

from calibration.runs import MeasuredRun
from moesim.errors import InputError
from moesim.scenarios import Request
from moesim.specs.loading import convert

SCHEMA_VERSION = 1
Kind = Literal[
    "machine",
    "serving",
    "offline",
    "diffusion",
    "decode_step",
    "prefill_step",
    "mixed_step",
    "operator",
    "collective",
    "kernels",
    "counters",
]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a record comes from: file, the file's sha256, place in it (row, line, key), and when it was measured."""

    file: str = ""
    sha256: str = ""
    place: str = ""
    date: str = ""


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine. `accelerator`: a name of the catalogue, or what the machine calls itself; '' when not recorded."""

    accelerator: str = ""
    devices: int | None = None
    nodes: int | None = None
    details: dict[str, Any] = {}


class Software(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Engine (or library whose kernel is timed), its version, and versions of what lies below it."""

    engine: str = ""
    engine_version: str = ""
    versions: dict[str, str] = {}


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured point of any kind.

    `request` holds the words of `moesim simulate` that the run amounts to (empty where it is no run of an engine);
    `flags` the engine's settings under its own names; `point` what was asked of a sweep or benchmark; `values`
    what came out, units in the names; `steps` one list a column with an entry an engine step; `tables` other lists
    of rows. `labels` mark known flaws. `layers`: built ones, where fewer than the model's may have been.
    `configuration`, `series`, `site`, `noise`: as in `calibration.runs.MeasuredRun`.
    """

    id: str
    kind: Kind
    model: str = ""
    layers: int | None = None
    weights: str = ""
    hardware: Hardware = Hardware()
    software: Software = Software()
    flags: dict[str, Any] = {}
    routing: str = ""
    request: dict[str, Any] = {}
    point: dict[str, Any] = {}
    values: dict[str, float] = {}
    steps: dict[str, list[Any]] = {}
    tables: dict[str, list[Any]] = {}
    labels: tuple[str, ...] = ()
    configuration: str = ""
    series: str = ""
    site: str = ""
    noise: float = 1.0
    provenance: Provenance = Provenance()
    schema_version: int = SCHEMA_VERSION


def check_measurement(item: Measurement, where: str) -> Measurement:
    """The record itself. Raises InputError for another version, an empty id, or a number that is not finite."""
    if item.schema_version != SCHEMA_VERSION:
        raise InputError(f"{where}: schema_version is {item.schema_version}, must be {SCHEMA_VERSION}")
    if not item.id:
        raise InputError(f"{where}: id is empty")
    for name in item.__struct_fields__:
        _check_value(getattr(item, name), f"{where}: {name}")
    return item


def from_run(run: MeasuredRun, provenance: Provenance) -> Measurement:
    """A measured run as a record; `to_run` gives it back exactly."""
    request = request_words(run.request)
    return Measurement(
        id=run.id,
        kind="diffusion"
        if run.request.generation_len
        else "offline"
        if run.request.frontend == "offline"
        else "serving",
        model=run.request.model,
        hardware=Hardware(accelerator=run.request.hardware, devices=run.request.gpus, nodes=run.request.nodes),
        software=Software(engine=run.engine, engine_version=run.request.engine_version),
        routing=run.request.routing,
        request=request,
        values=run.measured,
        labels=run.flags,
        configuration=run.configuration,
        series=run.series,
        site=run.site,
        noise=run.noise,
        provenance=provenance,
    )


def to_run(item: Measurement) -> MeasuredRun:
    """The record as a run that `moesim validate` can predict. Raises InputError when it has no request."""
    if not item.request:
        raise InputError(f"{item.provenance.file} {item.id}: has no request, so it is no run of an engine")
    return MeasuredRun(
        id=item.id,
        engine=item.software.engine,
        request=read_request(item.request, f"{item.provenance.file} {item.id}: request"),
        measured=item.values,
        flags=item.labels,
        configuration=item.configuration,
        series=item.series,
        site=item.site,
        noise=item.noise,
    )


def request_words(request: Request) -> dict[str, Any]:
    """The words of a request that are not at their default; an infinite rate is written "inf"."""
    words = {"model": request.model, "hardware": request.hardware}
    for field in msgspec.structs.fields(Request):
        value = getattr(request, field.name)
        if field.name not in words and value != field.default:
            words[field.name] = "inf" if value == math.inf else value
    return words


def read_request(words: dict[str, Any], where: str) -> Request:
    """The request that `request_words` wrote. Raises InputError naming the word at fault."""
    rate = {"request_rate": math.inf} if words.get("request_rate") == "inf" else {}
    return convert({**words, **rate}, Request, where)


def _check_value(value: Any, place: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{place} is {value}, must be a finite number")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise InputError(f"{place} is {value}, beyond 64 bits")
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            _check_value(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(cast("list[Any]", value)):
            _check_value(inner, f"{place}[{index}]")
