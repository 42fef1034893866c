from __future__ import annotations

import gzip
from pathlib import Path

import msgspec
import pytest

from hw_validation.inventory import compare_starts, count_records, main, read_folder
from hw_validation.records import make_record
from tests.hw_validation.fakes import SETUP

DATA = Path(__file__).parents[2] / "calibration" / "data" / "h200"


def write(folder: Path, start: str, gpu_ms: float) -> None:
    setup = msgspec.structs.replace(SETUP, environment=msgspec.structs.replace(SETUP.environment, machine_start=start))
    record = make_record("decode_step", "fake/decode/1", setup, {}, values={"gpu_median_ms": gpu_ms})
    with gzip.open(folder / f"{start}.jsonl.gz", "wb") as file:
        file.write(msgspec.json.encode(record) + b"\n")


def test_points_of_two_starts_are_counted_apart_and_compared(tmp_path: Path) -> None:
    write(tmp_path, "boot-1", 10.0)
    write(tmp_path, "boot-2", 10.5)
    records = read_folder(tmp_path)
    assert [(row.start, row.kinds["decode_step"]) for row in count_records(records)] == [("boot-1", 1), ("boot-2", 1)]
    ((model, kind, name, pairs, middle, largest),) = compare_starts(records)
    assert (model, kind, name, pairs) == ("fake", "decode_step", "gpu_median_ms", 1)
    assert middle == largest == pytest.approx(5.0)


def test_folder_without_records_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no" in capsys.readouterr().err


def test_shipped_records_are_all_of_one_gpu_and_enough() -> None:
    records = [record for _, record in read_folder(DATA)]
    assert {record.setup.environment.gpu for record in records} == {"NVIDIA H200"}
    points = [r for r in records if r.kind in ("decode_step", "prefill_step", "mixed_step", "closed_loop", "open_loop")]
    assert len(points) >= 300
    for model in ("olmoe-1b-7b", "qwen1.5-moe-a2.7b", "mixtral-8x7b"):
        assert len({r.setup.environment.machine_start for r in points if r.setup.model == model}) >= 2
    assert all(value is None or value >= 0 for record in points for value in record.values.values())
