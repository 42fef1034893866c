from __future__ import annotations

import gzip
import os
import re
import subprocess
from pathlib import Path

import pytest

from hw_validation.plan import SECTIONS

SCRIPT = Path(__file__).parents[2] / "hw_validation" / "campaigns" / "one_gpu.sh"
STUB = """#!/usr/bin/env bash
call="$*"
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2 ;; --model) model=$2 ;; esac
  shift
done
echo "$call" >> "$out"
[[ $model == deepseek-v3 && $out != *bf16* ]] && exit 1
exit 3
"""


def run(part: str, folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """Run a part of the campaign with a python3 that only writes its arguments down."""
    stub = folder / "bin" / "python3"
    stub.parent.mkdir()
    stub.write_text(STUB)
    stub.chmod(0o755)
    path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", str(SCRIPT), part, str(folder / "out"), str(seconds)]
    return subprocess.run(
        command, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("part", ["0", "1", "2", "3"])
def test_every_part_leaves_few_compressed_files(part: str, tmp_path: Path) -> None:
    run(part, tmp_path, seconds=500)
    files = sorted((tmp_path / "out").iterdir())
    assert 2 < len(files) <= 8
    assert all(file.suffix == ".gz" for file in files)


def test_failed_start_of_the_native_format_falls_back(tmp_path: Path) -> None:
    run("3", tmp_path, seconds=500)
    call = gzip.decompress((tmp_path / "out" / "deepseek-v3-bf16.jsonl.gz").read_bytes()).decode()
    assert "--bf16 --attention-backend TRITON_MLA" in call


def test_without_time_nothing_is_started(tmp_path: Path) -> None:
    done = run("1", tmp_path, seconds=20)
    assert "olmoe: no time left" in done.stdout


def test_sections_are_known() -> None:
    text = SCRIPT.read_text()
    lists = re.findall(r"(?:--sections |loops=|steps=)([a-z,-]+)", text)
    assert lists
    assert {name for names in lists for name in names.split(",")} <= set(SECTIONS)
