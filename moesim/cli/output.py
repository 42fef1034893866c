"""Data goes to stdout (tables, JSON or CSV); progress and remarks go to stderr."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console


def stdout() -> Console:
    """Console for data. Not a terminal: wide enough that no table is cut."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def stderr() -> Console:
    """Console for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(document: Any) -> None:
    """Print strict JSON; a NaN or infinity in it is a bug and raises."""
    print(json.dumps(document, indent=2, allow_nan=False))


def print_table(title: str, rows: Sequence[dict[str, Any]], note: str = "") -> None:
    """Print rows of equal keys as a table."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", header_style="bold", caption=note or None, caption_justify="left")
    for name in rows[0] if rows else ():
        numeric = isinstance(rows[0][name], int | float) and not isinstance(rows[0][name], bool)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    stdout().print(table)


def deliver(
    rows: Sequence[dict[str, Any]],
    document: Callable[[], Any],
    show: Callable[[], None],
    as_json: bool,
    csv_file: str | None,
) -> None:
    """Hand an answer over: rows to the CSV file, and the JSON document or the tables to stdout.

    A CSV file of '-' takes stdout for itself.
    """
    if csv_file == "-" and as_json:
        raise InputError("--csv - and --json: both would go to stdout; give --csv a file")
    if csv_file:
        write_csv(csv_file, rows)
    if as_json:
        print_json(document())
    elif csv_file != "-":
        show()


def print_rows(
    title: str, rows: Sequence[dict[str, Any]], document: Any, as_json: bool, csv_file: str | None, note: str = ""
) -> None:
    """Deliver an answer that is one table."""
    deliver(rows, lambda: document, lambda: print_table(title, rows, note), as_json, csv_file)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value == 0.0 or not math.isfinite(value):
            return f"{value:g}"
        digits = max(0, 2 - math.floor(math.log10(abs(value)))) if abs(value) < 1000 else 0
        return f"{value:,.{min(digits, 6)}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_csv(target: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV to a file (replaced in one go) or to stdout ('-')."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if target == "-":
        print(buffer.getvalue(), end="")
        return
    write_atomic(Path(target), buffer.getvalue())


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file or nothing, with a new file's usual rights.

    Raises:
        InputError: the folder cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            beside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None


@contextmanager
def progress(what: str) -> Generator[Callable[[int, int, str], None]]:
    """A progress bar on stderr; silent when stderr is no terminal. Yields update(done, total, word)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    console = stderr()
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def update(done: int, total: int, word: str) -> None:
            bar.update(task, completed=done, total=total, description=word)

        yield update
