from __future__ import annotations

import re
from pathlib import Path

from hw_validation.command.main import app
from hw_validation.experiment.runs import PlannedRun, list_runs
from moesim.experiments import list_experiments, load_experiment

TEXT = (Path(__file__).parents[2] / "hw_validation" / "README.md").read_text()


def rows() -> list[list[str]]:
    lines = [line for line in TEXT.splitlines() if re.match(r"\| \d ", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_verb_is_documented() -> None:
    for command in app.registered_commands:
        assert f"moesim-hw {command.name} " in TEXT


def test_every_phase_is_listed_with_its_runs_and_gpus() -> None:
    listed: set[str] = set()
    for _, files, runs, gpus, *_ in rows():
        names = re.findall(r"`(\w+)`", files)
        listed |= set(names)
        planned = [[run for run in list_runs(load_experiment(name)) if isinstance(run, PlannedRun)] for name in names]
        assert runs == " + ".join(str(len(found)) for found in planned)
        sizes = {run.server.gpus for found in planned for run in found}
        assert set(map(int, re.findall(r"\d+", gpus))) in (sizes, {min(sizes, default=0), max(sizes, default=0)})
    assert listed == {name for name in list_experiments() if name.startswith("phase")}


def test_named_options_exist() -> None:
    import typer

    help_of = {name: typer.main.get_command(app).commands[name] for name in ("run", "plan", "profile", "fetch")}  # type: ignore[attr-defined]
    known = {flag for command in help_of.values() for option in command.params for flag in option.opts}
    for flag in ("--budget-minutes", "--hosts", "--address", "--start-s", "--load-bytes-per-s", "--mirror", "--rocpd"):
        assert flag in TEXT
        assert flag in known
