from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from hw_validation.records import Record, RecordLog, make_record, read_records
from moesim.errors import InputError
from tests.hw_validation.fakes import SETUP


def record(key: str) -> Record:
    return make_record("decode_step", key, SETUP, {"batch_size": 1}, values={"gpu_median_ms": 1.5})


def test_record_survives_the_round_trip(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "runs.jsonl")
    written = record("a")
    log.append(written)
    assert list(read_records(log.path)) == [written]


def test_each_record_is_on_disk_before_the_next(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "runs.jsonl")
    for count, key in enumerate("abc", start=1):
        log.append(record(key))
        assert log.path.read_bytes().count(b"\n") == count


def test_reopened_log_knows_what_was_measured(tmp_path: Path) -> None:
    RecordLog(tmp_path / "runs.jsonl").append(record("a"))
    again = RecordLog(tmp_path / "runs.jsonl")
    assert "a" in again
    assert "b" not in again
    with pytest.raises(InputError, match="already holds a record 'a'"):
        again.append(record("a"))


def test_line_cut_short_by_a_kill_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    log = RecordLog(path)
    log.append(record("a"))
    log.append(record("b"))
    path.write_bytes(path.read_bytes()[:-20])
    again = RecordLog(path)
    assert again.keys == {"a"}
    again.append(record("b"))
    assert [item.key for item in read_records(path)] == ["a", "b"]


def test_compressed_files_are_read(tmp_path: Path) -> None:
    log = RecordLog(tmp_path / "runs.jsonl")
    log.append(record("a"))
    packed = tmp_path / "runs.jsonl.gz"
    packed.write_bytes(gzip.compress(log.path.read_bytes()))
    assert [item.key for item in read_records(packed)] == ["a"]


def test_foreign_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    RecordLog(path).append(record("a"))
    with path.open("ab") as file:
        file.write(b'{"kind": "decode_step", "volts": 3}\n')
    with pytest.raises(InputError, match=r"runs\.jsonl: line 2 is no record"):
        list(read_records(path))
