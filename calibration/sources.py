"""Files from outside, read within bounds: bytes, unpacked bytes, lines and rows are limited, errors name the place."""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar, cast

import msgspec

from moesim.errors import InputError

T = TypeVar("T")
_CHUNK_BYTES = 1 << 20
_LARGEST = 1e60
"""Numbers beyond it are damage; products of two below it stay finite."""
_FLAWS = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
    KeyError,
    IndexError,
    OverflowError,
    zlib.error,
    zipfile.BadZipFile,
)
"""What the standard library's unpackers raise on damaged input (zipfile has no single exception for it)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest input that is read; what is larger is refused, never cut.

    `table_bytes` and `json_bytes` count unpacked bytes, so that a compressed file cannot grow past them;
    `json_items` counts commas and brackets, since a list of empty lists takes thirty times its text in memory.
    """

    table_bytes: int = 4 << 30
    json_bytes: int = 512 << 20
    json_items: int = 60_000_000
    database_bytes: int = 16 << 30
    line_bytes: int = 4 << 20
    rows: int = 5_000_000
    query_s: float = 120.0


LIMITS = Limits()


def read_chunks(path: Path, limit_bytes: int) -> Iterator[bytes]:
    """The file's bytes, unpacked when it is gzip or a zip of one file.

    Raises:
        InputError: missing, not a file, unreadable, damaged, or larger than `limit_bytes`.
    """
    total = 0
    with _opened(path) as stream:
        while chunk := _read(stream, path, total):
            total += len(chunk)
            if total > limit_bytes:
                raise InputError(f"{path}: unpacks to more than {limit_bytes} bytes, the limit; cut it into parts")
            yield chunk


def read_head(path: Path, count: int = 4096) -> bytes:
    """The first `count` unpacked bytes; fewer when the file is shorter."""
    with _opened(path) as stream:
        return _read(stream, path, 0)[:count]


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """The whole file, unpacked."""
    _refuse_larger(path, limit_bytes)
    return b"".join(read_chunks(path, limit_bytes))


def read_json(path: Path, kind: type[T], limits: Limits = LIMITS) -> T:
    """A JSON file as `kind` (fields that it does not name are skipped). Raises InputError with the place."""
    content = read_bytes(path, limits.json_bytes)
    items = sum(content.count(mark) for mark in (b",", b"{", b"["))
    if items > limits.json_items:
        raise InputError(f"{path}: holds {items} JSON items, more than the limit of {limits.json_items}")
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid JSON of the expected form: {error}") from None
    except RecursionError:
        raise InputError(f"{path}: is JSON nested too deeply") from None


def read_lines(path: Path, limits: Limits = LIMITS) -> Iterator[tuple[int, str]]:
    """(line number, text with its line end). Raises InputError for a line that is too long or not UTF-8."""
    number, begun, size = 0, list[bytes](), 0
    for chunk in read_chunks(path, limits.table_bytes):
        first, *others = chunk.split(b"\n")
        begun.append(first)
        size += len(first)
        if others:
            for line in (b"".join(begun), *others[:-1]):
                number += 1
                yield number, _text(line, path, number, limits)
            begun, size = [others[-1]], len(others[-1])
        if size > limits.line_bytes:
            raise InputError(f"{path} line {number + 1}: is longer than {limits.line_bytes} bytes")
    if size:
        yield number + 1, _text(b"".join(begun), path, number + 1, limits).removesuffix("\n")


@dataclass(frozen=True, slots=True)
class Cells:
    """A row of a table from outside, and where it stands."""

    path: Path
    line: int
    cells: dict[str, str]

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.path} line {self.line}"

    def text(self, column: str) -> str:
        """A cell as text; '' when empty or absent."""
        return self.cells.get(column, "").strip()

    def number(self, column: str) -> float:
        """A finite number; thousands separators are dropped. Raises InputError naming column and value."""
        return parse_number(self.text(column), f"{self.place}: {column}")

    def integer(self, column: str) -> int:
        """A whole number, exact beyond 2^53. Raises InputError."""
        text = self.text(column)
        if text.removeprefix("-").isdecimal() and len(text) <= 20:
            return int(text)
        value = self.number(column)
        if value != math.floor(value):
            raise InputError(f"{self.place}: {column} is {text!r}, must be a whole number")
        return int(value)

    def optional(self, column: str) -> int | None:
        """A whole number, or None where the cell is empty or absent."""
        return self.integer(column) if self.text(column) else None


def parse_number(text: str, place: str) -> float:
    """`text` as a number, as in `check_number`. Raises InputError naming `place`."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        raise InputError(f"{place} is {text[:80]!r}, must be a number") from None
    return check_number(value, place)


def check_number(value: float, place: str) -> float:
    """The value itself. Raises InputError when it is infinite, NaN, or beyond any measured quantity."""
    if not abs(value) < _LARGEST:
        raise InputError(f"{place} is {value}, must be a finite number below {_LARGEST:g}")
    return value


def read_columns(path: Path, limits: Limits = LIMITS, begin: str = "") -> list[str]:
    """The header of a CSV file, as in `read_table`."""
    place = [0]
    rows = csv.reader(_counted(read_lines(path, limits), place, begin), strict=True)
    try:
        return _column_names(next(rows, []), path)
    except csv.Error as error:
        raise InputError(f"{path} line {place[0]}: is not valid CSV: {error}") from None


def read_table(path: Path, limits: Limits = LIMITS, begin: str = "") -> Iterator[Cells]:
    """Rows of a CSV file with a header, which is the first line that starts with `begin`.

    Raises:
        InputError: no header, a column named twice, a row of another width, broken quotes, too many rows.
    """
    place = [0]
    rows = csv.reader(_counted(read_lines(path, limits), place, begin), strict=True)
    try:
        names = _column_names(next(rows, []), path)
        for count, row in enumerate((row for row in rows if row), start=1):
            if len(row) != len(names):
                raise InputError(f"{path} line {place[0]}: has {len(row)} cells, the header has {len(names)}")
            if count > limits.rows:
                raise InputError(f"{path} line {place[0]}: more than {limits.rows} rows, the limit")
            yield Cells(path, place[0], dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path} line {place[0]}: is not valid CSV: {error}") from None


def hash_file(path: Path) -> str:
    """sha256 of the file as it lies on disk (packed, when it is)."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Generator[IO[bytes]]:
    try:
        if not path.is_file():
            raise InputError(f"{path}: " + ("is not a file" if path.exists() else "file does not exist"))
        file = path.open("rb")
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    with file:
        magic = file.read(4)
        file.seek(0)
        if magic[:2] == b"\x1f\x8b":
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file))
        elif magic == b"PK\x03\x04":
            with _only_member(file, path) as member:
                yield member
        else:
            yield file


def _only_member(file: IO[bytes], path: Path) -> IO[bytes]:
    try:
        archive = zipfile.ZipFile(file)
        names = archive.namelist()
        if len(names) == 1:
            return archive.open(names[0])
    except _FLAWS as error:
        raise InputError(f"{path}: is a damaged zip file: {error}") from None
    raise InputError(f"{path}: is a zip of {len(names)} files; unpack it and name one")


def _read(stream: IO[bytes], path: Path, offset: int) -> bytes:
    try:
        return stream.read(_CHUNK_BYTES)
    except _FLAWS as error:
        raise InputError(f"{path}: is damaged or cut off after {offset} unpacked bytes: {error}") from None


def _refuse_larger(path: Path, limit_bytes: int) -> None:
    try:
        size = path.stat().st_size if path.is_file() else 0
    except (OSError, ValueError):
        return
    if size > limit_bytes:
        raise InputError(f"{path}: {size} bytes is larger than the limit of {limit_bytes}; cut it into parts")


def _text(line: bytes, path: Path, number: int, limits: Limits) -> str:
    if len(line) > limits.line_bytes:
        raise InputError(f"{path} line {number}: is longer than {limits.line_bytes} bytes")
    if b"\0" in line:
        raise InputError(f"{path} line {number}: holds a NUL byte, so it is no text table")
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8") + "\n"
    except UnicodeDecodeError:
        raise InputError(f"{path} line {number}: is not UTF-8 text") from None


def _counted(lines: Iterator[tuple[int, str]], place: list[int], begin: str) -> Iterator[str]:
    """The lines from the header on, their number noted in `place`."""
    begun = False
    for number, line in lines:
        place[0] = number
        begun = begun or (bool(line.strip()) and line.startswith(begin))
        if begun:
            yield line


def _column_names(header: list[str], path: Path) -> list[str]:
    if not any(header):
        raise InputError(f"{path}: has no header of a table")
    names = [name.strip() for name in header]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise InputError(f"{path}: column {twice!r} stands twice in the header")
    return names
