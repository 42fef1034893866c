"""The command line: verbs are loaded by name, errors become one line and exit code 2."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import typer

from moesim.cli import demo, estimate, experiment, hardware, imbalance, models, place, queue_depth, recommend, simulate
from moesim.errors import InputError

HELP = """How will a Mixture-of-Experts model run on that hardware, before you rent it.

Start with: moesim recommend --model mixtral-8x7b --hardware h200 --gpus 8

Every verb prints tables, or with --json strict JSON with stable keys; data goes to stdout, progress to stderr.
Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted.
"""
VERBS = (
    (recommend, "recommend"),
    (simulate, "simulate"),
    (estimate, "estimate"),
    (experiment, "experiment"),
    (place, "place"),
    (imbalance, "imbalance"),
    (queue_depth, "queue-depth"),
    (models, "models"),
    (hardware, "hardware"),
    (demo, "demo"),
)


def make_command(words: Sequence[str] | None = None) -> Any:
    """The command with all verbs, those of other packages (entry points `moesim.commands`) included.

    Verbs that are not among `words` are only listed, without their options (without `words` none is).
    Only the help of a single verb is laid out by rich, whose import costs more than all the rest.
    """
    app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    verbs = {name: getattr(module, name.replace("-", "_")) for module, name in VERBS}
    for entry in sorted(entry_points(group="moesim.commands"), key=lambda item: item.name):
        verbs[entry.name] = entry.load()
    for name, verb in verbs.items():
        app.command(name)(verb if words is None or name in words else _listed(verb))
    command: Any = typer.main.get_command(app)
    for verb in command.commands.values():
        verb.rich_markup_mode = "rich"
    return command


def _listed(verb: Callable[..., None]) -> Callable[[], None]:
    """A verb's help without its options, which take most of the time that laying out a verb takes."""

    def listed() -> None: ...

    listed.__doc__ = verb.__doc__
    return listed


def run(words: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code; errors go to stderr."""
    try:
        code = make_command(words)(list(words) or ["--help"], prog_name="moesim", standalone_mode=False)
        sys.stdout.flush()
    except InputError as error:
        return _fail(str(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        _silence_stdout()
        return 0
    except Exception as error:
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _fail(f"{message()}{_given(error, words)} ({_help_hint(words)})", 2)
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the `moesim` program."""
    sys.exit(run(sys.argv[1:]))


def _help_hint(words: Sequence[str]) -> str:
    verb = f" {words[0]}" if words and words[0] in {name for _, name in VERBS} else ""
    return f"moesim{verb} --help lists what there is"


def _given(error: Exception, words: Sequence[str]) -> str:
    """The value at fault, as typed: ", got 'abc'"."""
    for name in getattr(getattr(error, "param", None), "opts", ()):
        for index, word in enumerate(words):
            flag, equals, value = word.partition("=")
            if flag == name and (equals or index + 1 < len(words)):
                return f", got {value if equals else words[index + 1]!r}"
    return ""


def _fail(message: str, code: int) -> int:
    print(f"moesim: {' '.join(message.split())}", file=sys.stderr)
    return code


def _silence_stdout() -> None:
    """The reader went away: whatever is still buffered must not raise at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
