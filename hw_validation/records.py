"""Measured points as JSON lines: one line a point, on disk at once, so that a crash loses nothing measured."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from moesim.errors import InputError

SCHEMA_VERSION = 1
Kind = Literal[
    "environment",
    "microbenchmark",
    "decode_step",
    "prefill_step",
    "mixed_step",
    "closed_loop",
    "open_loop",
    "step_kernels",
    "step_counters",
]


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine and its software. `machine_start` is the kernel's boot id: equal only within one start."""

    machine_start: str
    gpu: str
    gpu_memory_bytes: int
    driver: str
    cuda: str
    torch: str
    python: str
    kernel: str
    cpu: str
    cpu_cores: int


class Setup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ran: model, the number of its layers that were built, weights, engine and its flags.

    `flags` holds the resolved settings (enforce_eager, max_num_seqs, max_num_batched_tokens,
    cudagraph_capture_sizes, kv_cache_dtype, async_scheduling, ...), not only those asked for.
    """

    model: str
    num_layers: int
    weights: Literal["dummy", "real", "none"]
    engine: str
    engine_version: str
    environment: Environment
    flags: dict[str, Any] = {}


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured point.

    `point` says what was asked (batch_size, context_len, ...), `values` what came out, units in the names.
    `steps` holds one list a column with one entry an engine step (`hw_validation.step_trace.StepRow`);
    `tables` holds other lists of rows, such as the kernels of a step.
    """

    kind: Kind
    key: str
    setup: Setup
    date: str
    point: dict[str, Any]
    values: dict[str, float | None]
    steps: dict[str, list[Any]] = {}
    tables: dict[str, list[Any]] = {}
    schema_version: int = SCHEMA_VERSION


def make_record(kind: Kind, key: str, setup: Setup, point: dict[str, Any], **content: Any) -> Record:
    """A record dated now; `content` gives `values` and optionally `steps` and `tables`."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Record(kind=kind, key=key, setup=setup, date=date, point=point, **content)


class RecordLog:
    """A file of records that only grows. Opening it again finds what was measured before.

    A last line cut short by a kill is removed on opening, so that its point is measured again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_partial_line(path)
        self.keys = {record.key for record in read_records(path)} if path.exists() else set[str]()

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def append(self, record: Record) -> None:
        """Write the record through to the disk; refuses a key that the file already holds."""
        if record.key in self.keys:
            raise InputError(f"{self.path}: already holds a record {record.key!r}")
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.keys.add(record.key)


class KeysOnly:
    """The log of a process that records nothing and only has to know what is recorded."""

    def __init__(self, keys: set[str]) -> None:
        self.keys = keys

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def append(self, record: Record) -> None:
        """Note that the point is measured."""
        self.keys.add(record.key)


Log = RecordLog | KeysOnly


def read_records(path: Path) -> Iterator[Record]:
    """All whole records of a .jsonl or .jsonl.gz file. Raises InputError naming file and line."""
    decoder = msgspec.json.Decoder(Record)
    opener = gzip.open if path.suffix == ".gz" else Path.open
    with opener(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                raise InputError(f"{path}: line {number} is no record: {error}") from None


def _cut_partial_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
