from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hw_validation.machine import health
from tests.docker.lint import instructions, lint

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
FILES = sorted(DOCKER.glob("Dockerfile.*"))
GOOD = """FROM a/b:1@sha256:00
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN python3 -m pip install --no-cache-dir x==1
USER me
HEALTHCHECK CMD ["true"]
CMD ["x"]
"""


def test_all_images_are_there() -> None:
    assert [path.suffix for path in FILES] == [".cuda", ".llada", ".rocm"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_no_rule_is_broken(path: Path) -> None:
    assert lint(path.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("a/b:1@sha256:00", "a/b", "DL3006"),
        ("a/b:1@sha256:00", "a/b:latest", "DL3007"),
        ("a/b:1@sha256:00", "registry.example/a/b:1", "MS002"),
        ("USER me", "USER root", "DL3002"),
        ("USER me\n", "", "DL3002"),
        ('HEALTHCHECK CMD ["true"]\n', "", "DL3057"),
        ('CMD ["x"]', "CMD x", "DL3025"),
        ("x==1", "x", "DL3013"),
        ("--no-cache-dir ", "", "DL3042"),
        ("x==1", "x==1 && cd /tmp", "DL3003"),
        ("x==1", "x==1 && sudo true", "DL3004"),
        ("x==1", "x==1 && apt-get install -y --no-install-recommends gcc && rm -r /var/lib/apt/lists", "DL3008"),
        ("x==1", "x==1 && apt-get install -y --no-install-recommends gcc=1", "DL3009"),
        ("x==1", "x==1 && apt-get install -y gcc=1 && rm -r /var/lib/apt/lists", "DL3015"),
        ("USER me", "ADD x /y\nUSER me", "DL3020"),
        ("USER me", "WORKDIR x\nUSER me", "DL3000"),
        ("USER me", "ENV HF_TOKEN=abc\nUSER me", "MS001"),
        ('SHELL ["/bin/bash", "-o", "pipefail", "-c"]\nRUN', "RUN true | cat &&", "DL4006"),
    ],
)
def test_every_rule_can_fail(old: str, new: str, code: str) -> None:
    assert lint(GOOD) == []
    assert old in GOOD
    assert [problem for problem in lint(GOOD.replace(old, new)) if problem.startswith(code)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix)
def test_copied_paths_exist_and_reach_the_build(path: Path) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest, _ in instructions(path.read_text()):
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert source in kept


def test_compose_builds_the_images_without_privileges() -> None:
    document = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = document["services"]
    assert set(services) == {path.suffix[1:] for path in FILES}
    for name, service in services.items():
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()
        assert not service["user"].startswith("0")
        assert not service.get("privileged")
        assert "no-new-privileges:true" in service["security_opt"]
        assert service["cap_drop"] == ["ALL"]
        models, _ = service["volumes"]
        assert models.endswith(":ro")
        if name == "rocm":
            assert set(service["devices"]) == {"/dev/kfd", "/dev/dri"}
            assert len(service["group_add"]) == 2
        else:
            (device,) = service["deploy"]["resources"]["reservations"]["devices"]
            assert device["driver"] == "nvidia"


def test_requirements_are_pinned_and_leave_the_engines_packages_alone() -> None:
    for name in ("requirements.txt", "build-requirements.txt"):
        lines = [line for line in (DOCKER / name).read_text().splitlines() if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
        packages = {line.partition("==")[0].lower() for line in lines}
        assert not packages & {"torch", "numpy", "vllm", "transformers", "triton"}


def test_command_needs_no_package_that_the_images_lack() -> None:
    lines = (DOCKER / "requirements.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("-", "_") for line in lines if "==" in line}
    in_the_bases = {"numpy", "typing_extensions"}
    script = (
        "import sys, json, hw_validation.command.main\n"
        "import hw_validation.experiment.planning, hw_validation.server.execute\n"
        "import moesim.cli.output, rich.table\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(json.loads(done.stdout)) - set(sys.stdlib_module_names)
    heavy = {"pandas", "pyarrow", "scipy", "sklearn", "torch", "vllm", "joblib", "matplotlib"}
    assert not loaded & heavy
    third_party = {"msgspec", "yaml", "simpy", "typer", "rich", "click", "shellingham"} & loaded
    assert third_party - {"yaml"} <= pinned | in_the_bases


def test_health_needs_a_gpu_and_the_server_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert health.main() == 1
    assert "no GPU is visible" in capsys.readouterr().err
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, NVIDIA H200, 570.1, 143771, 700, 1980, 3201, GPU-0, 0000:00'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin:/usr/bin")
    assert health.main() == 0
    monkeypatch.setenv("MOESIM_SERVER_URL", "http://127.0.0.1:9")
    assert health.main() == 1
    assert "no server answers at http://127.0.0.1:9" in capsys.readouterr().err
