"""The verb `moesim profile`: what a profiler's file says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.options import AsJson, CsvFile

if TYPE_CHECKING:
    from calibration.profilers.tables import Profile

_NAME_CHARS = 70


def profile(
    file: Annotated[
        str, typer.Argument(help="File of rocprofv3, Nsight Systems, Nsight Compute or torch.profiler (may be gzip).")
    ],
    top: Annotated[int, typer.Option(help="Kernels to show in the table.")] = 20,
    as_json: AsJson = False,
    csv: CsvFile = None,
) -> None:
    """Show a profiler's file: kernels by total time, launch gaps, steps, memory traffic, and what is absent.

    Traffic, bandwidth and occupancy are shown where the counters for them were collected. --csv writes one row a
    kernel, all of them.
    """
    from dataclasses import asdict
    from pathlib import Path

    from calibration.profilers import read_profile
    from calibration.profilers.summary import list_kernels
    from moesim.cli.output import print_json, write_csv

    found = read_profile(Path(file))
    if csv:
        write_csv(csv, [asdict(row) for row in list_kernels(found)])
    if as_json:
        print_json(describe_profile(found))
    elif csv != "-":
        _print(found, top)


def describe_profile(found: Profile) -> dict[str, Any]:
    """The JSON contract: stable keys, times in seconds, null where the file does not say."""
    from dataclasses import asdict

    import msgspec

    from calibration.profilers.hbm import measure_devices
    from calibration.profilers.summary import list_absent, list_devices, list_kernels, list_steps

    return {
        "path": found.path,
        "tool": found.tool,
        "kernels": [asdict(row) for row in list_kernels(found)],
        "devices": [asdict(row) for row in list_devices(found)],
        "device_traffic": [asdict(item) for item in measure_devices(found)],
        "hardware": msgspec.to_builtins(found.devices),
        "steps": [asdict(row) for row in list_steps(found)],
        "other_totals": [msgspec.to_builtins(total) for total in found.totals if total.what != "kernel"],
        "counter_names": sorted({counter.counter for counter in found.counters}),
        "absent": list_absent(found),
        "remarks": list(found.remarks),
    }


def _print(found: Profile, top: int) -> None:
    from dataclasses import asdict

    import msgspec

    from calibration.profilers.hbm import measure_devices
    from calibration.profilers.summary import list_absent, list_devices, list_kernels, list_steps
    from moesim.cli.output import print_table, stderr, stdout

    stdout().print(f"{found.path}: {found.tool}", soft_wrap=True, markup=False)
    kernels = list_kernels(found)
    if kernels:
        title = f"{sum(row.launches for row in kernels)} executions of {len(kernels)} kernels"
        print_table(title, _readable([asdict(row) for row in kernels[:top]]))
    elif found.devices:
        print_table("Devices", _readable([msgspec.to_builtins(device) for device in found.devices]))
    for title, rows in (
        ("Devices in use", [asdict(row) for row in list_devices(found)]),
        ("Memory traffic of devices", [asdict(item) for item in measure_devices(found)]),
        ("Steps", [asdict(row) for row in list_steps(found)]),
        ("Other", [msgspec.to_builtins(total) for total in found.totals if total.what != "kernel"][:top]),
        (
            "Counters of the whole file",
            [_whole_file(counter) for counter in found.counters if counter.dispatch is None][:top],
        ),
    ):
        if rows:
            print_table(title, _readable(rows))
    for word, lines in (("absent", list_absent(found)), ("note", found.remarks)):
        for line in lines:
            stderr().print(f"{word}: {line}", soft_wrap=True, markup=False)


def _whole_file(counter: Any) -> dict[str, Any]:
    return {"counter": counter.counter, "device": counter.device, "value": counter.value, "unit": counter.unit}


def _readable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Seconds as microseconds, bytes as megabytes, shares as per cent, long names cut, empty columns left out."""
    kept = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return [dict(_cell(name, row[name]) for name in kept) for row in rows]


def _cell(name: str, value: Any) -> tuple[str, Any]:
    if name.endswith("bytes_per_s"):
        return name.removesuffix("bytes_per_s") + "GB/s", value / 1e9 if value is not None else None
    if name.endswith("_s"):
        return f"{name[:-2]} us", value * 1e6 if value is not None else None
    if name.endswith("_bytes"):
        return f"{name[:-6]} MB", value / 1e6 if value is not None else None
    if name.endswith("share") or name == "occupancy":
        return name, f"{value:.1%}" if value is not None else None
    return name, _shown(value) if isinstance(value, str) else value


def _shown(text: str) -> str:
    """A name from the file, cut, without control characters and without markup."""
    from rich.markup import escape

    short = text if len(text) <= _NAME_CHARS else f"{text[: _NAME_CHARS - 1]}…"
    return escape("".join(letter if letter.isprintable() else "?" for letter in short))
