"""Files made to do harm: too long a line, bombs, cut and damaged archives, things that are no files."""

import gzip
import os
import time
import tracemalloc
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.profilers import read_profile
from calibration.sources import Limits, hash_file, parse_number, read_bytes, read_lines, read_table
from moesim.errors import InputError


def test_a_line_of_a_gigabyte_is_refused_at_once(tmp_path):
    """A sparse file: one line of 1.1 GB after a good header."""
    path = tmp_path / "long.csv"
    with path.open("wb") as file:
        file.write(b"Dispatch_ID,Kernel_Name,Counter_Name,Counter_Value\n1,")
        file.truncate(1_100_000_000)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(InputError, match="line 2: is longer"):
        read_profile(path)
    assert time.perf_counter() - begin < 10
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_a_json_file_of_a_gigabyte_is_refused_by_its_size(tmp_path):
    path = tmp_path / "trace.json"
    with path.open("wb") as file:
        file.write(b'{"traceEvents": [')
        file.truncate(1_100_000_000)
    with pytest.raises(InputError, match="larger than the limit"):
        read_profile(path)


@pytest.mark.parametrize("packer", ["gzip", "zip"])
def test_bombs_stop_at_the_limit(tmp_path, packer):
    """20 MB of blanks pack to a few kilobytes; only the limit's worth is unpacked."""
    path = tmp_path / "bomb"
    content = b'{"traceEvents":' + b" " * 20_000_000
    if packer == "gzip":
        path.write_bytes(gzip.compress(content))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("trace.json", content)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="unpacks to more than 2000000 bytes"):
        read_profile(path, Limits(json_bytes=2_000_000))


def test_json_that_grows_in_memory_is_refused(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text('{"traceEvents": [' + "{}," * 5000 + "{}]}")
    with pytest.raises(InputError, match="JSON items"):
        read_profile(path, Limits(json_items=9000))
    assert read_profile(path).kernels == ()


def test_a_wide_table_of_counters_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("calibration.profilers.building.MAX_COUNTERS", 50)
    path = tmp_path / "wide.csv"
    names = [f"SQ_{number}" for number in range(60)]
    path.write_text(f"Dispatch_ID,Kernel_Name,{','.join(names)}\n1,k,{','.join('1' * 60)}\n")
    with pytest.raises(InputError, match="more than 50 counter values"):
        read_profile(path)


def test_packed_files_that_are_cut_damaged_or_crowded(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(os.urandom(5000))[:3000])
    with pytest.raises(InputError, match="damaged or cut off"):
        read_bytes(path, 10_000)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "x")
        archive.writestr("b", "y")
    with pytest.raises(InputError, match="zip of 2 files"):
        read_profile(path)
    path.write_bytes(b"PK\x03\x04 no zip at all")
    with pytest.raises(InputError, match="damaged zip"):
        read_profile(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "not a file"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "pipe", "not a file"),
    ):
        with pytest.raises(InputError, match=words):
            read_profile(path)
    with pytest.raises(InputError):
        read_profile(tmp_path / "a\0b")
    with pytest.raises(InputError):
        hash_file(tmp_path)


def test_too_many_rows(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("a\n" + "1\n" * 100)
    with pytest.raises(InputError, match="line 12: more than 10 rows"):
        list(read_table(path, Limits(rows=10)))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab\n"), max_size=40), chunk=st.integers(1, 7))
def test_lines_are_those_of_the_text_whatever_the_chunks(tmp_path, monkeypatch, text, chunk):
    monkeypatch.setattr("calibration.sources._CHUNK_BYTES", chunk)
    path = tmp_path / "text"
    path.write_text(text)
    assert [line for _, line in read_lines(path)] == text.splitlines(keepends=True)
    assert [number for number, _ in read_lines(path)] == list(range(1, len(text.splitlines()) + 1))


@given(st.floats(-1e59, 1e59))
def test_numbers_survive(value):
    assert parse_number(repr(value), "x") == value


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "1e61", "", "one", "0x10"])
def test_numbers_that_are_none(text):
    with pytest.raises(InputError, match="cell"):
        parse_number(text, "cell")


def test_thousands_separators():
    assert parse_number("1,234.5", "x") == 1234.5
