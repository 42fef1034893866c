"""Experiment files: a base request and the values that vary; runs that were interrupted go on where they stopped."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from moesim.errors import InputError, nearest
from moesim.metrics.row import result_row
from moesim.scenarios import Request, make_scenario
from moesim.simulation import simulate_scenario
from moesim.specs.loading import config_root, convert, load


class Experiment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`base` holds the words of every run; `vary` maps a word to its values; runs are all combinations.

    `runs` lists further runs as changes to the base. `feeds` says what the results are used for.
    `measurement` holds the words of a run on real hardware that a simulation does not need
    (`hw_validation.experiment.measurement`); here they are kept and not read.
    """

    name: str
    description: str
    base: dict[str, Any] = {}
    vary: dict[str, list[Any]] = {}
    runs: tuple[dict[str, Any], ...] = ({},)
    feeds: str = ""
    measurement: dict[str, Any] = {}
    source: str = ""

    @property
    def size(self) -> int:
        """Number of runs."""
        combinations = 1
        for values in self.vary.values():
            combinations *= len(values)
        return combinations * len(self.runs)

    def requests(self) -> Iterator[Request]:
        """Every run's words, checked."""
        names = list(self.vary)
        for run in self.runs:
            for values in itertools.product(*self.vary.values()):
                words = {**self.base, **run, **dict(zip(names, values, strict=True))}
                yield convert(words, Request, self.source or self.name)


class FinishedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A simulated run: the scenario's digest, the words that differ from the defaults, and the flat result row."""

    digest: str
    words: dict[str, Any]
    row: dict[str, Any]


def list_experiments() -> list[str]:
    """Names of the shipped experiments."""
    return sorted(path.stem for path in (config_root() / "experiments").glob("*.yaml"))


def load_experiment(name: str) -> Experiment:
    """An experiment by shipped name or path. Raises InputError naming file and field."""
    path = Path(name)
    if not name.endswith((".yaml", ".yml", ".json")):
        if name not in list_experiments():
            raise InputError(f"experiment: unknown {name!r}; {nearest(name, list_experiments())} (or give a YAML file)")
        path = config_root() / "experiments" / f"{name}.yaml"
    experiment = msgspec.structs.replace(load(path, Experiment), source=str(path))
    if not list(experiment.requests()):
        raise InputError(f"{path}: describes no runs")
    return experiment


def finished_runs(path: Path) -> dict[str, FinishedRun]:
    """Runs of an earlier, perhaps interrupted call by digest; a line cut off in the middle is left out.

    Raises:
        InputError: the file cannot be read, or a whole line of it is no finished run.
    """
    if not path.exists():
        return {}
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    known: dict[str, FinishedRun] = {}
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            continue
        try:
            run = msgspec.json.decode(line, type=FinishedRun)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} line {number}: is no finished run ({error})") from None
        known[run.digest] = run
    return known


def run_experiment(
    experiment: Experiment, known: Mapping[str, FinishedRun], path: Path | None
) -> Iterator[FinishedRun]:
    """Simulate the runs that are not known yet and append each to `path` (if any) as soon as it is done."""
    for request in experiment.requests():
        scenario = make_scenario(request)
        done = known.get(scenario.digest())
        if done is None:
            row = result_row(scenario, simulate_scenario(scenario))
            done = FinishedRun(digest=scenario.digest(), words=_stated(request), row=row)
            if path is not None:
                _append(path, done)
        yield done


def _stated(request: Request) -> dict[str, Any]:
    fields = msgspec.structs.fields(request)
    return {
        field.name: getattr(request, field.name) for field in fields if getattr(request, field.name) != field.default
    }


def _append(path: Path, run: FinishedRun) -> None:
    """Add a line; what is left of a line that was cut off is ended first."""
    try:
        with path.open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, 2)
                if stream.read(1) != b"\n":
                    stream.truncate(_last_line_start(path))
            stream.write(msgspec.json.encode(run) + b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _last_line_start(path: Path) -> int:
    return path.read_bytes().rfind(b"\n") + 1
