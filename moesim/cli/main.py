"""The command line: verbs are loaded by name, errors become one line and exit code 2."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import typer

from moesim.cli import demo, estimate, hardware, models, recommend, simulate
from moesim.errors import InputError

HELP = """How will a Mixture-of-Experts model run on that hardware, before you rent it.

Start with: moesim recommend --model mixtral-8x7b --hardware h200 --gpus 8
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
for module, name in (
    (recommend, "recommend"),
    (simulate, "simulate"),
    (estimate, "estimate"),
    (models, "models"),
    (hardware, "hardware"),
    (demo, "demo"),
):
    app.command(name)(getattr(module, name))


def _add_plugins() -> None:
    """Verbs of other packages (entry points `moesim.commands`), in order of name."""
    for entry in sorted(entry_points(group="moesim.commands"), key=lambda item: item.name):
        app.command(entry.name)(entry.load())


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 checked and failed, 2 bad input, 130 interrupted."""
    _add_plugins()
    try:
        app()
    except InputError as error:
        print(f"moesim: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("moesim: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
