"""Words from the command line to a scenario, with errors that name flags."""

from __future__ import annotations

from typing import Any

from moesim.errors import InputError
from moesim.scenarios import Request, make_scenario
from moesim.specs.catalog import list_hardware, list_models
from moesim.specs.loading import convert
from moesim.specs.scenario import Scenario


def to_request(words: dict[str, Any]) -> Request:
    """Checked words; a missing model or hardware lists the known ones."""
    for name, known in (("model", list_models), ("hardware", list_hardware)):
        if not words.get(name):
            raise InputError(f"--{name} is missing; known: {', '.join(known())}")
    return convert(words, Request, "command line")


def to_scenario(words: dict[str, Any]) -> Scenario:
    """The scenario that the words describe."""
    return make_scenario(to_request(words))
