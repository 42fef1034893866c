from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from calibration.profilers import read_profile
from calibration.profilers.hbm import measure_traffic
from hw_validation.profilers.passes import ROCPROF_COUNTERS, ProfileOptions, passes
from hw_validation.profilers.profile import MANIFEST, Manifest, profile_workload
from moesim.errors import InputError

ROOT = Path(__file__).parents[3]
WORKLOAD = "import torch\na = torch.ones(64, 64)\nprint(float((a @ a).sum()))\n"
NCU = """#!{python}
import sys
from pathlib import Path
words = sys.argv[1:]
assert words[words.index("--clock-control") + 1] == "none"
log = Path(words[words.index("--log-file") + 1])
names = words[words.index("--metrics") + 1].split(",")
row = ['"ID"', '"Process ID"', '"Kernel Name"'] + [f'"{{name}}"' for name in names]
units = ['""'] * 3 + ['"byte"' if "bytes" in name else '"nsecond"' if "time" in name else '"%"' for name in names]
values = ['"0"', '"1"', '"gemm"'] + ['"1,000"'] * len(names)
log.write_text("==PROF== Connected\\n" + "\\n".join(",".join(line) for line in (row, units, values)) + "\\n")
"""
NCU_REFUSED = """#!/bin/sh
echo '==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters'
exit 1
"""
NSYS = """#!{python}
import sys
from pathlib import Path
words = sys.argv[1:]
if words[0] == "profile":
    assert "--cuda-graph-trace=node" in words
    Path(words[words.index("--output") + 1] + ".nsys-rep").write_bytes(b"report")
else:
    (target,) = [word.removeprefix("--output=") for word in words if word.startswith("--output=")]
    assert Path(words[-1]).is_file()
    Path(target).write_bytes(b"SQLite format 3")
"""
ROCPROF = """#!{python}
import sys
from pathlib import Path
words = sys.argv[1:]
folder = Path(words[words.index("--output-directory") + 1])
name = words[words.index("--output-file") + 1]
kind = words[words.index("--output-format") + 1]
folder.mkdir(parents=True, exist_ok=True)
what = "kernel_trace" if "--kernel-trace" in words else "counter_collection"
target = f"{{name}}_results.db" if kind == "rocpd" else f"{{name}}_{{what}}.csv"
(folder / target).write_text(" ".join(words))
"""


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def install(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text.replace("{python}", sys.executable).replace("{{", "{").replace("}}", "}"))
    path.chmod(0o755)


def workload(tmp_path: Path) -> list[str]:
    script = tmp_path / "work.py"
    script.write_text(WORKLOAD)
    return ["python", str(script)]


@pytest.mark.parametrize("tool", ["ncu", "nsys", "rocprofv3"])
def test_missing_tool_is_named(tool: str, tmp_path: Path, bin_dir: Path) -> None:
    with pytest.raises(InputError, match=f"{tool} is not on PATH"):
        profile_workload(tool, ["true"], ProfileOptions(out=tmp_path / "out"))  # type: ignore[arg-type]


def test_ncu_counters_are_read_as_traffic(tmp_path: Path, bin_dir: Path) -> None:
    install(bin_dir, "ncu", NCU)
    manifest = profile_workload("ncu", workload(tmp_path), ProfileOptions(out=tmp_path / "out"))
    assert (manifest.used, manifest.reason) == ("ncu", "")
    (traffic,) = measure_traffic(read_profile(tmp_path / "out" / manifest.passes[0].files[0]))
    assert traffic.total_bytes == 2000
    assert traffic.duration_s == pytest.approx(1e-6)


def test_refused_counters_fall_back_to_torch_and_say_so(tmp_path: Path, bin_dir: Path) -> None:
    pytest.importorskip("torch")
    install(bin_dir, "ncu", NCU_REFUSED)
    out = tmp_path / "out"
    profile_workload("ncu", workload(tmp_path), ProfileOptions(out=out))
    manifest = msgspec.json.decode((out / MANIFEST).read_bytes(), type=Manifest)
    assert (manifest.asked, manifest.used) == ("ncu", "torch")
    assert "ERR_NVGPUCTRPERM" in manifest.reason
    assert manifest.passes[0].files == ("torch_trace.json.gz",)
    assert read_profile(out / "torch_trace.json.gz").tool.startswith("torch")


def test_fallback_needs_a_python_command(tmp_path: Path, bin_dir: Path) -> None:
    pytest.importorskip("torch")
    install(bin_dir, "ncu", NCU_REFUSED)
    with pytest.raises(InputError, match="pass trace ended with exit code 2"):
        profile_workload("ncu", ["/bin/true"], ProfileOptions(out=tmp_path / "out"))
    assert "no Python script or module" in (tmp_path / "out" / "trace.log").read_text()


def test_nsys_report_is_exported_to_sqlite(tmp_path: Path, bin_dir: Path) -> None:
    install(bin_dir, "nsys", NSYS)
    manifest = profile_workload("nsys", ["true"], ProfileOptions(out=tmp_path / "out"))
    assert [item.files for item in manifest.passes] == [("nsys.nsys-rep",), ("nsys.sqlite",)]


@pytest.mark.parametrize(("kind", "ending"), [("csv", ".csv"), ("rocpd", ".db")])
def test_rocprofv3_runs_the_workload_once_for_each_group_of_counters(
    kind: str, ending: str, tmp_path: Path, bin_dir: Path
) -> None:
    install(bin_dir, "rocprofv3", ROCPROF)
    options = ProfileOptions(out=tmp_path / "out", rocprof_format=kind)  # type: ignore[arg-type]
    manifest = profile_workload("rocprofv3", ["true"], options)
    assert len(manifest.passes) == 1 + len(ROCPROF_COUNTERS)
    assert all(item.files[0].endswith(ending) for item in manifest.passes)
    asked = " ".join(" ".join(item.command) for item in manifest.passes)
    assert "--kernel-trace" in asked
    assert all(name in asked for group in ROCPROF_COUNTERS for name in group)


def test_no_pass_asks_for_more_l2_counters_than_a_channel_has() -> None:
    for group in ROCPROF_COUNTERS:
        assert sum(name.startswith("TCC_") for name in group) <= 4


def test_workload_that_fails_is_refused_with_its_log(tmp_path: Path, bin_dir: Path) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit(7)\n")
    with pytest.raises(InputError, match="ended with exit code 7"):
        profile_workload("torch", ["python", str(script)], ProfileOptions(out=tmp_path / "out"))


def test_program_that_ends_hard_still_leaves_its_trace(tmp_path: Path, bin_dir: Path) -> None:
    pytest.importorskip("torch")
    script = tmp_path / "hard.py"
    script.write_text(WORKLOAD + "import os\nos._exit(0)\n")
    profile_workload("torch", ["python", str(script)], ProfileOptions(out=tmp_path / "out"))
    assert (tmp_path / "out" / "torch_trace.json.gz").stat().st_size > 100


def test_ncu_takes_only_the_kernels_asked_for(tmp_path: Path) -> None:
    options = ProfileOptions(out=tmp_path, launch_skip=50, launch_count=9)
    command = " ".join(passes("ncu", ["true"], options)[0].command)
    assert "--launch-skip 50 --launch-count 9" in command


def test_command_line_prints_passes_and_names_unknown_tools(tmp_path: Path) -> None:
    base = [sys.executable, "-m", "hw_validation", "profile"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shown = subprocess.run(
        [*base, "nsys", "--dry-run", "--", "python", "x.py", "--flag"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[0].endswith("python x.py --flag")
    wrong = subprocess.run(
        [*base, "nsight", "--", "true"], capture_output=True, text=True, env=environment, check=False
    )
    assert wrong.returncode == 2
    assert "unknown 'nsight'" in wrong.stderr
    assert json.dumps(wrong.stderr).count("Traceback") == 0
