"""Experiment files: a base request and the values that vary."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from moesim.errors import InputError, nearest
from moesim.scenarios import Request
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
    list(experiment.requests())
    return experiment
