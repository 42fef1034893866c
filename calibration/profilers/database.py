"""SQLite files from outside: read only, tables only, bounded in time and rows.

The file is opened immutable, so that nothing is written beside it. Views, virtual tables and generated columns are
never read: what they compute is the file's author's code. No extension is loaded, and no query outlives the limit.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from calibration.sources import LIMITS, Limits, read_chunks
from moesim.errors import InputError

MAGIC = b"SQLite format 3\0"
_MAX_VALUE_BYTES = 16 << 20
_HANDLER_STEPS = 200_000


class Database:
    """The real tables of an opened file. `tables` maps names to columns."""

    def __init__(self, path: Path, connection: sqlite3.Connection, limits: Limits) -> None:
        self.path = path
        self._connection = connection
        self._limits = limits
        self.tables = self._list_tables()

    def has(self, table: str, *columns: str) -> bool:
        """Whether the file holds the table with these columns."""
        return table in self.tables and set(columns) <= self.tables[table]

    def rows(self, table: str, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[tuple[Any, ...]]:
        """The columns of every row, `optional` ones as None where the table lacks them.

        Raises:
            InputError: the table or a needed column is missing, the file is damaged, or a limit is passed.
        """
        if table not in self.tables:
            raise InputError(f"{self.path}: has no table {table}")
        missing = [column for column in columns if column not in self.tables[table]]
        if missing:
            raise InputError(f"{self.path}: table {table} has no column {missing[0]}")
        names = [_quoted(name) for name in columns]
        names += [_quoted(name) if name in self.tables[table] else "NULL" for name in optional]
        query = f"SELECT {', '.join(names)} FROM {_quoted(table)} LIMIT {self._limits.rows + 1}"
        for count, row in enumerate(self._run(query, f"table {table}"), start=1):
            if count > self._limits.rows:
                raise InputError(f"{self.path}: table {table} has more than {self._limits.rows} rows, the limit")
            yield row

    def count(self, table: str) -> int:
        """Rows of a table; 0 when the file lacks it."""
        if table not in self.tables:
            return 0
        return next(self._run(f"SELECT count(*) FROM {_quoted(table)}", f"table {table}"))[0]

    def _list_tables(self) -> dict[str, set[str]]:
        listed = list(self._run("SELECT name, sql FROM sqlite_master WHERE type = 'table'", "the list of tables"))
        real = [name for name, sql in listed if str(sql or "").lstrip().upper().startswith("CREATE TABLE")]
        return {name: {row[1] for row in self._run(f"PRAGMA table_info({_quoted(name)})", name)} for name in real}

    def _run(self, query: str, what: str) -> Iterator[tuple[Any, ...]]:
        try:
            for row in self._connection.execute(query):  # noqa: UP028 (closing must not touch the cursor)
                yield row
        except sqlite3.OperationalError as error:
            reason = f"takes longer than {self._limits.query_s:g} s" if "interrupted" in str(error) else str(error)
            raise InputError(f"{self.path}: {what} cannot be read: {reason}") from None
        except (sqlite3.Error, OverflowError, UnicodeDecodeError, MemoryError) as error:
            raise InputError(f"{self.path}: {what} cannot be read: {error}") from None


@contextmanager
def open_database(path: Path, limits: Limits = LIMITS) -> Generator[Database]:
    """The database in `path`, or in the gzip or zip file `path`. Raises InputError."""
    with tempfile.TemporaryDirectory() as folder:
        plain = _unpacked(path, Path(folder), limits)
        try:
            connection = sqlite3.connect(f"file:{quote(str(plain.resolve()))}?mode=ro&immutable=1", uri=True)
        except sqlite3.Error as error:
            raise InputError(f"{path}: cannot be opened: {error}") from None
        try:
            _harden(connection, limits)
            yield Database(path, connection, limits)
        finally:
            connection.close()


def whole(value: Any, place: str) -> int:
    """A whole number from a cell (SQLite lets any type stand in any column). Raises InputError."""
    if isinstance(value, int):
        return value
    raise InputError(f"{place} is {str(value)[:80]!r}, must be a whole number")


def optional_whole(value: Any, place: str) -> int | None:
    """A whole number, or None for NULL."""
    return None if value is None else whole(value, place)


def _harden(connection: sqlite3.Connection, limits: Limits) -> None:
    deadline = time.monotonic() + limits.query_s
    connection.set_progress_handler(lambda: int(time.monotonic() > deadline), _HANDLER_STEPS)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.text_factory = _decode
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA query_only = ON")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _unpacked(path: Path, folder: Path, limits: Limits) -> Path:
    chunks = read_chunks(path, limits.database_bytes)
    first = next(chunks, b"")
    if not first.startswith(MAGIC):
        raise InputError(f"{path}: is no SQLite file")
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                _refuse_open_log(path)
                return path
        target = folder / "unpacked.sqlite"
        with target.open("wb") as file:
            file.write(first)
            for chunk in chunks:
                file.write(chunk)
    except OSError as error:
        raise InputError(f"{path}: cannot be unpacked ({error.strerror or error})") from None
    return target


def _refuse_open_log(path: Path) -> None:
    log = path.with_name(path.name + "-wal")
    if log.is_file() and log.stat().st_size > 0:
        raise InputError(f"{path}: has unmerged changes in {log.name}; close the program that writes it first")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
