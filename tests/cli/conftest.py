"""Runs of the command line inside the test process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from moesim.cli.main import run as run_words


@dataclass(frozen=True)
class Answer:
    """Exit code and what went to stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Strict JSON of stdout: NaN and infinity are refused."""
        return json.loads(self.out, parse_constant=_refuse)


def _refuse(text: str) -> None:
    raise AssertionError(f"{text} in JSON output")


Run = Callable[..., Answer]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call with the words of a command line (one string, or several words)."""

    def call(*words: str) -> Answer:
        split = words[0].split() if len(words) == 1 else list(words)
        capsys.readouterr()
        code = run_words(split)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return call
