"""What a folder of measured records holds, how far machine starts differ, and how LLaDA stands to its floor.

python -m hw_validation.inventory calibration/data/h200
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from hw_validation.records import Record, read_records
from moesim.errors import InputError

POINT_KINDS = ("decode_step", "prefill_step", "mixed_step", "closed_loop", "open_loop")
_COMPARED = {
    "decode_step": ("gpu_median_ms",),
    "prefill_step": ("gpu_median_ms", "launch_median_ms"),
    "mixed_step": ("gpu_median_ms",),
    "closed_loop": ("tpot_median_ms", "ttft_median_ms"),
}


class Row(NamedTuple):
    """One line of the inventory: what ran where, and how many records of each kind."""

    model: str
    layers: int
    mode: str
    start: str
    kinds: Counter[str]


def read_folder(folder: Path) -> list[tuple[Path, Record]]:
    """All records under `folder`. Raises InputError when there are none."""
    found = [(path, record) for path in sorted(folder.rglob("*.jsonl.gz")) for record in read_records(path)]
    if not found:
        raise InputError(f"{folder}: holds no *.jsonl.gz records")
    return found


def describe_mode(record: Record) -> str:
    """Engine mode of a record: server or in-process, graphs or eager, whether routing came back or was forced."""
    flags = record.setup.flags
    if flags.get("frontend") == "server":
        return "server"
    mode = "eager" if flags.get("enforce_eager") else "graphs"
    mode += "+routing" if flags.get("returns_routed_experts") else ""
    return mode + ("+forced" if flags.get("forced_routing") else "")


def count_records(records: Sequence[tuple[Path, Record]]) -> list[Row]:
    """One row for each model, layer count, mode and machine start (the boot id's first characters)."""
    counts: dict[tuple[str, int, str, str], Counter[str]] = defaultdict(Counter)
    for _, record in records:
        if record.setup.model != "none" and record.kind != "microbenchmark":
            start = record.setup.environment.machine_start[:8]
            counts[record.setup.model, record.setup.num_layers, describe_mode(record), start][record.kind] += 1
    return [Row(*key, kinds) for key, kinds in sorted(counts.items())]


def compare_starts(records: Sequence[tuple[Path, Record]]) -> Iterator[tuple[str, str, str, int, float, float]]:
    """(model, kind, value, points, median and largest difference in percent) of points that several starts share."""
    groups: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for _, record in records:
        groups[f"{record.key} {describe_mode(record)}", record.kind][record.setup.environment.machine_start] = record
    differences: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for (_, kind), starts in groups.items():
        model = next(iter(starts.values())).setup.model
        for name in _COMPARED.get(kind, ()):
            found = [value for record in starts.values() if (value := record.values.get(name))]
            if len(found) > 1:
                differences[model, kind, name].append(100 * (max(found) / min(found) - 1))
    for (model, kind, name), values in sorted(differences.items()):
        yield model, kind, name, len(values), median(values), max(values)


def read_llada(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file name, record) of every LLaDA run under `folder`."""
    for path in sorted(folder.rglob("llada*.json.gz")):
        with gzip.open(path, "rb") as file:
            for record in json.load(file)["records"]:
                yield path.name.removesuffix(".json.gz"), record


def describe_llada(runs: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """One line a run; and for each file with both executions, how many times grouped is faster than the loop."""
    base: dict[tuple[str, str], float] = {}
    for name, run in runs:
        settings, values = run["settings"], run["measured"]
        mode = f"{run['operators']}, {'graph' if settings['graphs'] else 'eager'}, cache {settings['cache']}"
        size = f"batch {settings['batch']}, generation {settings['generation_len']}, CFG {settings['cfg_scale']:g}"
        share = f"{100 * run['floor_share']:.1f} % of the floor {run['floor']['milliseconds']:.3f} ms"
        yield f"{name}: {mode}, {size}: forward {values['forward_step_ms']:.3f} ms, {share}"
        if settings["cache"] == "none" and settings["batch"] == 1 and not settings["cfg_scale"]:
            base.setdefault((name, settings["expert_execution"]), values["prompt_mean_ms"])
    for (name, execution), loop_ms in base.items():
        if execution == "loop":
            yield f"{name}: grouped is {loop_ms / base[name, 'grouped']:.1f} times as fast as the loop"


def main(arguments: list[str] | None = None) -> int:
    """Print the inventory of the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args(arguments).folder
    try:
        records = read_folder(folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs = list(read_llada(folder))
    for row in count_records(records):
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(row.kinds.items()))
        print(f"{row.model:20} {row.layers:2} layers  {row.mode:15} {row.start}  {kinds}")
    total = sum(record.kind in POINT_KINDS for _, record in records)
    micro = sum(record.kind == "microbenchmark" for _, record in records)
    print(f"\n{total} points and loops, {len(runs)} LLaDA runs, {micro} microbenchmarks\n\nbetween machine starts:")
    for model, kind, name, points, middle, largest in compare_starts(records):
        print(f"{model:20} {kind:13} {name:17} {points:3} points: median {middle:.1f} %, largest {largest:.1f} %")
    print()
    print("\n".join(describe_llada(runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
