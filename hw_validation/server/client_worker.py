"""A process that imports vLLM's benchmark client once and then runs it for every line of arguments it is sent.

Lines are JSON: a list of arguments in, {"result": ...} or {"error": ...} out; the first line out says whether the
library is there. What the client prints goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Client = Callable[[list[str]], dict[str, Any]]


def main() -> int:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    client = load_client()
    _answer(answers, {"ready": True} if client else {"error": "no-library"})
    if client is None:
        return 0
    for line in sys.stdin:
        try:
            _answer(answers, {"result": client(json.loads(line))})
        except (Exception, SystemExit) as error:
            _answer(answers, {"error": f"{type(error).__name__}: {error}"})
    return 0


def load_client() -> Client | None:
    """vLLM's own client as a function of its arguments; None where it cannot be imported."""
    try:
        from vllm.benchmarks import serve
    except ImportError:
        return None

    def run(arguments: list[str]) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        serve.add_cli_args(parser)
        with contextlib.redirect_stdout(sys.stderr):
            return serve.main(parser.parse_args(arguments))

    return run


def _answer(stream: Any, document: dict[str, Any]) -> None:
    stream.write(json.dumps(document) + "\n")
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
