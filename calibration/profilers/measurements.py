"""A profile as measurements of the one schema: a record a kernel, and a record an engine step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration.profilers.summary import KernelRow, StepRow, list_kernels, list_steps
from calibration.profilers.tables import Device, Profile
from calibration.schema import Hardware, Measurement, Provenance, Software, check_measurement
from calibration.sources import hash_file


def to_measurements(profile: Profile) -> list[Measurement]:
    """Kernels as kind `counters` where memory traffic or occupancy is known, else `kernels`; steps as `*_step`.

    `values` hold what the tables of `moesim profile` show, by the same names; `point` says which kernel or batch.
    What ran (model, engine, its flags) is not in a profiler's file: fill it in with `msgspec.structs.replace`.

    Raises:
        InputError: the file has gone, or a value is no number.
    """
    sha256 = hash_file(Path(profile.path))
    hardware = _hardware(profile.devices)
    items = [*_kernels(profile, sha256, hardware), *_steps(profile, sha256, hardware)]
    return [check_measurement(item, f"{profile.path}: {item.id}") for item in items]


def _kernels(profile: Profile, sha256: str, hardware: Hardware) -> Iterator[Measurement]:
    for number, row in enumerate(list_kernels(profile)):
        known = row.read_bytes is not None or row.bytes_per_s is not None or row.occupancy is not None
        yield Measurement(
            id=f"{Path(profile.path).name}#kernel{number}",
            kind="counters" if known else "kernels",
            hardware=hardware,
            software=Software(versions={"profiler": profile.tool}),
            point={"kernel": row.kernel},
            values=_numbers(row),
            provenance=Provenance(file=profile.path, sha256=sha256, place=f"kernel {number}"),
        )


def _steps(profile: Profile, sha256: str, hardware: Hardware) -> Iterator[Measurement]:
    for number, row in enumerate(list_steps(profile)):
        step = profile.steps[number]
        if step.context is None or step.generation is None:
            continue  # a mark of torch.profiler's schedule, which says nothing about a batch
        prefill, decode = step.context.requests > 0, step.generation.requests > 0
        yield Measurement(
            id=f"{Path(profile.path).name}#step{number}",
            kind="mixed_step" if prefill and decode else "prefill_step" if prefill else "decode_step",
            hardware=hardware,
            software=Software(versions={"profiler": profile.tool}),
            point={"context": _tokens(step.context), "generation": _tokens(step.generation), "tokens": step.tokens},
            values=_numbers(row),
            provenance=Provenance(file=profile.path, sha256=sha256, place=f"step {number}"),
        )


def _tokens(tokens: Any) -> dict[str, int]:
    """The sums that the annotation gives."""
    fields = ("requests", "query", "key", "query_query", "query_key")
    return {name: value for name in fields if (value := getattr(tokens, name)) is not None}


def _numbers(row: KernelRow | StepRow) -> dict[str, float]:
    fields: Mapping[str, Any] = asdict(row)
    return {name: float(value) for name, value in fields.items() if isinstance(value, int | float)}


def _hardware(devices: tuple[Device, ...]) -> Hardware:
    """One kind of device, by name; several kinds are told in the details only."""
    names = sorted({device.name for device in devices if device.name})
    details = {"names": names} if len(names) > 1 else {}
    return Hardware(accelerator=names[0] if len(names) == 1 else "", devices=len(devices) or None, details=details)
