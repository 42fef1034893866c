"""The verb on every saved sample: numbers, strict JSON, one line a kernel in the CSV, hostile names."""

import csv
import io
import json
import subprocess
import sys

import pytest

from calibration.profile_command import profile
from moesim.errors import InputError
from tests.calibration.samples import PROFILERS, needs

_DOCUMENTS = ("README", "LICENSE", "tables.sql", "views.sql", "schema.json", "arch_MI300X", "vllm_runs")
"""Saved beside the profiles: texts, schemas, a table of peaks, and runs that `moesim validate` reads."""


def saved() -> list:
    files = sorted(path for path in PROFILERS.rglob("*") if path.is_file()) if PROFILERS.is_dir() else []
    return [pytest.param(path, id=path.name) for path in files]


@pytest.mark.reference
@needs(PROFILERS)
@pytest.mark.parametrize("path", saved())
def test_every_saved_file(path, capsys):
    if any(word in str(path.relative_to(PROFILERS)) for word in _DOCUMENTS):
        with pytest.raises(InputError) as caught:
            profile(str(path))
        assert str(path) in str(caught.value)
        return
    profile(str(path), top=5)
    shown = capsys.readouterr()
    assert shown.out.startswith(str(path))
    profile(str(path), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["kernels"] or document["other_totals"] or document["hardware"] or document["counter_names"]
    words = " ".join(document["absent"])
    assert document["kernels"] or "kernels" in words
    assert document["counter_names"] or "counters" in words
    times = [row["total_s"] for row in document["kernels"] if row["total_s"] is not None]
    assert times == sorted(times, reverse=True)
    if times and sum(times):
        assert sum(row["share"] for row in document["kernels"] if row["share"]) == pytest.approx(1)
    for row in document["devices"]:
        assert 0 <= row["busy_s"] <= row["span_s"] * (1 + 1e-9)


def test_csv_holds_every_kernel(tmp_path, capsys):
    path = tmp_path / "trace.csv"
    rows = "".join(f"2,{number},k{number},{number}0,{number}5\n" for number in range(1, 40))
    path.write_text("GPU_ID,Dispatch_ID,Kernel_Name,Start_Timestamp,End_Timestamp\n" + rows)
    profile(str(path), csv="-")
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 39


def test_names_with_markup_and_control_characters_are_shown_plain(tmp_path, capsys):
    path = tmp_path / "trace.csv"
    header = "GPU_ID,Dispatch_ID,Kernel_Name,Start_Timestamp,End_Timestamp\n"
    path.write_text(header + '2,1,"[/bold] [red]k\x1b[2J [clone .kd]",1,5\n')
    profile(str(path))
    out = capsys.readouterr().out
    assert "[/bold] [red]k?[2J [clone .kd]" in out
    assert "\x1b" not in out


@pytest.mark.reference
@needs(PROFILERS)
def test_the_command_line_gives_one_line_and_code_2(tmp_path):
    run = [sys.executable, "-c", "from moesim.cli.main import main; main()", "profile"]
    bad = subprocess.run([*run, str(PROFILERS / "README.md")], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert bad.stderr.count("\n") == 1
    assert "Traceback" not in bad.stderr
    good = PROFILERS / "rocprofiler_compute_mi300x" / "vcopy_rocpd_pmc_perf_long.csv"
    answer = subprocess.run([*run, str(good), "--json"], capture_output=True, text=True, check=True)
    (row,) = json.loads(answer.stdout)["kernels"]
    assert row["write_bytes"] == 8388608
    assert 8.398e6 <= row["read_bytes"] <= 8.403e6
