"""The command line: verbs are thin, errors become one line and exit code 2."""

from __future__ import annotations

import sys

import typer

from hw_validation.command import env, fetch, plan, profile, run
from moesim.errors import InputError

HELP = """Measure Mixture-of-Experts models on real GPUs: what to run, what it costs, records that no crash loses.

Start with: moesim-hw plan phase1_single_gpu
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.command("env")(env.env)
app.command("fetch")(fetch.fetch)
app.command("plan")(plan.plan)
app.command("run")(run.run)
app.command("profile", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(profile.profile)


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 some runs failed, 2 bad input, 3 stopped early, 130 interrupted."""
    try:
        app()
    except InputError as error:
        print(f"moesim-hw: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("moesim-hw: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
