"""Records of our own runner: JSON lines (.jsonl, .jsonl.gz), schema_version 1, one measured point a line.

The fields are those of calibration/README.md; they are read as plain data, so that this package needs nothing of
the runner. A last line without its line end was cut by a kill and is left out.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import msgspec

from calibration.readers.words import engine_words, site_of
from calibration.schema import Hardware, Kind, Measurement, Provenance, Software, check_measurement
from calibration.sources import LIMITS, Limits, hash_file, read_lines
from moesim.errors import InputError
from moesim.scenarios import Request

VERSION = 1
_LINE_BYTES = 64 << 20
"""A record holds every step of its run in one line."""
_REQUEST_WORDS = frozenset(field.name for field in msgspec.structs.fields(Request))
_COLLECTIVES = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "custom_all_reduce"})
"""A machine start is named by the first characters of its boot id."""
_KINDS: dict[str, Kind] = {
    "environment": "machine",
    "microbenchmark": "operator",
    "decode_step": "decode_step",
    "prefill_step": "prefill_step",
    "mixed_step": "mixed_step",
    "closed_loop": "serving",
    "open_loop": "serving",
    "step_kernels": "kernels",
    "step_counters": "counters",
}


class _Setup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model: str
    num_layers: int
    weights: Literal["dummy", "real", "none"]
    engine: str
    engine_version: str
    environment: dict[str, Any]
    flags: dict[str, Any] = {}


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    key: str
    setup: _Setup
    date: str
    point: dict[str, Any]
    values: dict[str, float | None]
    steps: dict[str, list[Any]] = {}
    tables: dict[str, list[Any]] = {}
    schema_version: int = VERSION


def read(path: Path, limits: Limits = LIMITS) -> list[Measurement]:
    """All whole records of the file. Raises InputError naming file and line."""
    wide = dataclasses.replace(limits, line_bytes=max(limits.line_bytes, _LINE_BYTES)) if limits == LIMITS else limits
    decoder = msgspec.json.Decoder(_Record)
    found: list[tuple[str, _Record]] = []
    for number, line in read_lines(path, wide):
        place = f"{path} line {number}"
        if number > limits.rows:
            raise InputError(f"{place}: more than {limits.rows} records, the limit")
        if not line.endswith("\n"):
            break
        try:
            record = decoder.decode(line)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InputError(f"{place}: is no record: {error}") from None
        found.append((place, record))
    source = Provenance(file=str(path), sha256=hash_file(path))
    return [_to_measurement(record, place, source) for place, record in found]


def _to_measurement(record: _Record, place: str, source: Provenance) -> Measurement:
    if record.schema_version != VERSION:
        raise InputError(f"{place}: schema_version is {record.schema_version}, must be {VERSION}")
    if record.kind not in _KINDS:
        raise InputError(f"{place}: kind is {record.kind[:40]!r}, must be one of {', '.join(_KINDS)}")
    setup, kind = record.setup, _kind(record)
    environment = {name: value for name, value in setup.environment.items() if name not in _VERSIONS}
    flags = setup.flags
    item = Measurement(
        id=record.key,
        kind=kind,
        model="" if setup.model == "none" else setup.model,
        layers=setup.num_layers,
        weights=setup.weights,
        hardware=Hardware(
            accelerator=str(flags.get("hardware") or setup.environment.get("gpu", "")),
            devices=_whole(flags.get("gpus", record.point.get("ranks"))),
            nodes=_whole(flags.get("nodes")),
            details=environment,
        ),
        software=Software(
            engine="" if setup.engine == "none" else setup.engine,
            engine_version=setup.engine_version,
            versions={name: str(setup.environment[name]) for name in _VERSIONS if name in setup.environment},
        ),
        flags=flags,
        routing=_routing(record),
        request=_request(record, setup) if kind in ("serving", "offline", "diffusion") else {},
        point=record.point,
        values={name: value for name, value in record.values.items() if value is not None},
        steps=record.steps,
        tables=record.tables,
        site=site_of(setup.environment),
        provenance=msgspec.structs.replace(source, place=record.key, date=record.date),
    )
    return check_measurement(item, place)


_VERSIONS = ("driver", "cuda", "torch", "python", "kernel")


def _kind(record: _Record) -> Kind:
    point = record.point
    if record.kind == "microbenchmark" and point.get("operation") in _COLLECTIVES:
        return "collective"
    if record.kind == "closed_loop" and "llada" in record.tables:
        return "diffusion"
    if record.kind == "closed_loop" and point.get("frontend") == "offline":
        return "offline"
    return _KINDS[record.kind]


def _routing(record: _Record) -> str:
    """Routing as asked for: the request's words, else the spread of a random router, else the skew of a benchmark."""
    for name in ("routing", "router_spread", "zipf", "skew"):
        if name in record.point:
            value = record.point[name]
            return str(value) if name == "routing" else f"{name}:{value}"
    return str(record.setup.flags.get("routing_strategy") or "")


def _request(record: _Record, setup: _Setup) -> dict[str, Any]:
    """The request's words: those recorded, or those that a sweep's point and the engine's settings amount to."""
    point = record.point
    if {"model", "hardware", "input_len"} <= set(point):
        words = {name: value for name, value in point.items() if name in _REQUEST_WORDS and value is not None}
        if not {"request_rate", "concurrency", "trace"} & set(words) and point.get("frontend") == "offline":
            words["request_rate"] = "inf"  # all at once; JSON has no infinity, so the record holds null
        return words
    words = {"model": setup.model, "hardware": setup.environment.get("gpu", ""), **engine_words(setup.flags)}
    words |= {name: point[name] for name in ("concurrency", "input_len", "output_len") if name in point}
    words["num_prompts"] = point.get("num_requests", point.get("num_prompts", 0))
    if (rate := record.values.get("offered_requests_per_s")) is not None:
        words["request_rate"] = rate
    words["frontend"] = "server" if setup.flags.get("frontend") == "server" else "offline"
    return words


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
