"""The package as others get it: no GPU software needed, and a wheel that carries its configs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "vllm", "transformers", "calibration", "hw_validation", "analysis"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import moesim
names = [m.name for m in pkgutil.walk_packages(moesim.__path__, "moesim.")]
for name in names:
    importlib.import_module(name)
result = moesim.simulate(model="olmoe-1b-7b", hardware="h200", num_prompts=4, output_len=4)
print(len(names), result.output_tokens_per_s > 0)
"""


def test_every_module_works_without_gpu_software_and_sister_packages():
    done = subprocess.run([sys.executable, "-c", BLOCK], capture_output=True, text=True, check=True, cwd=ROOT)
    count, works = done.stdout.split()
    assert int(count) > 40
    assert works == "True"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the freshly built wheel; its dependencies are read from the running one."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("moesim-*.whl")
    venv.create(folder / "env", with_pip=False)
    site = folder / "env" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "env" / "bin" / "python"


def call(python: Path, *words: str) -> str:
    command = [str(python), "-c", "from moesim.cli.main import main; main()", *words]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=python.parent, env=env).stdout


def test_an_installed_wheel_carries_its_configs(installed: Path):
    where = [str(installed), "-c", "import moesim, calibration; print(moesim.__file__)"]
    found = subprocess.run(where, capture_output=True, text=True, check=True, cwd=installed.parent).stdout.strip()
    assert Path(found).is_relative_to(installed.parents[1])
    assert len(json.loads(call(installed, "models", "--json"))["models"]) >= 15
    assert len(json.loads(call(installed, "hardware", "--json"))["hardware"]) >= 10
    assert len(json.loads(call(installed, "experiment", "--json"))["experiments"]) >= 3


def test_an_installed_wheel_answers_and_knows_all_verbs(installed: Path):
    shown = call(installed, "--help")
    for verb in ("recommend", "place", "validate", "calibrate", "profile", "predict-strategy", "residuals"):
        assert verb in shown
    words = ("simulate", "--model", "mixtral-8x7b", "--hardware", "mi300x", "--num-prompts", "4", "--json")
    assert json.loads(call(installed, *words))["output_tokens_per_s"] > 0


def test_the_wheel_names_what_it_needs():
    """Every third-party module that the packages import is declared."""
    import ast
    import tomllib

    declared = " ".join(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]).lower()
    names = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
    for package in ("moesim", "calibration", "analysis"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                for module in modules:
                    top = module.partition(".")[0]
                    if top in sys.stdlib_module_names or top in {"moesim", "calibration", "hw_validation", "analysis"}:
                        continue
                    assert names.get(top, top).lower() in declared, f"{path.name} imports {top}"
