"""Measurements on disk: JSON, CSV and Parquet, each exact, written whole or not at all.

CSV and Parquet hold a row a measurement: plain columns for the fixed fields, `value:NAME` for each measured value
(empty where it was not measured), and JSON text for what has no fixed shape (`point:NAME`, flags, request, steps,
tables, labels).
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from calibration.schema import SCHEMA_VERSION, Measurement, check_measurement
from calibration.sources import LIMITS, Limits, parse_number, read_json, read_table
from moesim.errors import InputError
from moesim.specs.loading import convert

NAME = f"moesim.measurements/{SCHEMA_VERSION}"
_TEXT = ("id", "kind", "model", "weights", "routing", "configuration", "series", "site")
_WHOLE = ("schema_version", "layers")
_JSON = ("flags", "request", "steps", "tables", "labels")
_NESTED = {
    "hardware": (("accelerator",), ("devices", "nodes"), ("details",)),
    "software": (("engine", "engine_version"), (), ("versions",)),
    "provenance": (("file", "sha256", "place", "date"), (), ()),
}
"""Nested structures: their text, whole-number and JSON fields, each a column `structure.field`."""
_VALUE, _POINT = "value:", "point:"
_MAX_CELLS = 50_000_000

Row = dict[str, str | int | float | None]


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    schema: str
    measurements: list[Measurement]


def save_measurements(path: Path, items: Iterable[Measurement]) -> None:
    """Write by suffix: .json, .csv or .parquet. The file is replaced in one step.

    Raises:
        InputError: another suffix, a record that `check_measurement` refuses, or a folder that cannot be written.
    """
    checked = [check_measurement(item, f"{path}: {item.id}") for item in items]
    match path.suffix:
        case ".json":
            content = msgspec.json.format(msgspec.json.encode(_Document(NAME, checked)), indent=1) + b"\n"
        case ".csv":
            content = _to_csv([_flatten(item) for item in checked]).encode("utf-8")
        case ".parquet":
            content = _to_parquet([_flatten(item) for item in checked])
        case _:
            raise InputError(f"{path}: suffix {path.suffix!r} is none of .json, .csv, .parquet")
    _replace(path, content)


def load_measurements(path: Path, limits: Limits = LIMITS) -> list[Measurement]:
    """What `save_measurements` wrote. Raises InputError naming file and place."""
    match path.suffixes[-1:] if path.suffix != ".gz" else path.suffixes[-2:-1]:
        case [".json"]:
            return _from_json(path, limits)
        case [".csv"]:
            rows = [(row.place, dict(row.cells)) for row in read_table(path, limits)]
            return [_unflatten(cells, place) for place, cells in rows]
        case [".parquet"]:
            return [
                _unflatten(row, f"{path} row {number}") for number, row in enumerate(_from_parquet(path, limits), 1)
            ]
        case _:
            raise InputError(f"{path}: suffix {path.suffix!r} is none of .json, .csv, .parquet")


def is_ours(columns: Iterable[str]) -> bool:
    """Whether a table with these columns is one of measurements."""
    return {"schema_version", "kind", "provenance.sha256"} <= set(columns)


def _from_json(path: Path, limits: Limits) -> list[Measurement]:
    document = read_json(path, dict[str, Any], limits)
    if document.get("schema") != NAME:
        raise InputError(f"{path}: schema is {str(document.get('schema'))[:80]!r}, must be {NAME!r}")
    found = convert(document, _Document, str(path)).measurements
    return [check_measurement(item, f"{path}: measurements[{index}]") for index, item in enumerate(found)]


def _flatten(item: Measurement) -> Row:
    row: Row = {name: getattr(item, name) for name in (*_WHOLE, *_TEXT, "noise")}
    for name, (texts, wholes, documents) in _NESTED.items():
        inner = getattr(item, name)
        row |= {f"{name}.{field}": getattr(inner, field) for field in (*texts, *wholes)}
        row |= {f"{name}.{field}": _json(getattr(inner, field)) for field in documents}
    row |= {name: _json(getattr(item, name)) for name in _JSON}
    row |= {f"{_POINT}{name}": _json(value) for name, value in item.point.items()}
    return row | {f"{_VALUE}{name}": value for name, value in item.values.items()}


def _unflatten(row: Mapping[str, str | int | float | None], where: str) -> Measurement:
    document: dict[str, Any] = {"values": {}, "point": {}, **{name: {} for name in _NESTED}}
    for column, cell in row.items():
        if cell is None or cell == "":
            continue
        place = f"{where}: {column}"
        head, dot, field = column.partition(".")
        if column.startswith(_VALUE):
            document["values"][column.removeprefix(_VALUE)] = parse_number(str(cell), place)
        elif column.startswith(_POINT):
            document["point"][column.removeprefix(_POINT)] = _parse(cell, place)
        elif dot and head in _NESTED:
            texts, wholes, _ = _NESTED[head]
            document[head][field] = str(cell) if field in texts else _cell(cell, field in wholes, place)
        elif column == "noise":
            document[column] = parse_number(str(cell), place)
        else:
            document[column] = str(cell) if column in _TEXT else _cell(cell, column in _WHOLE, place)
    return check_measurement(convert(document, Measurement, where), where)


def _cell(cell: str | int | float, whole: bool, place: str) -> Any:
    if not whole:
        return _parse(cell, place)
    text = str(cell)
    if not text.removeprefix("-").isdecimal() or len(text) > 20:
        raise InputError(f"{place} is {text[:40]!r}, must be a whole number")
    return int(text)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode("utf-8")


def _parse(cell: str | int | float, place: str) -> Any:
    try:
        return msgspec.json.decode(str(cell))
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InputError(f"{place} is not valid JSON: {error}") from None


def _columns(rows: Sequence[Row]) -> list[str]:
    """Fixed columns in their order, then points and values by name."""
    fixed = list(_flatten(Measurement(id="x", kind="machine")))
    return fixed + sorted({name for row in rows for name in row} - set(fixed))


def _to_csv(rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: repr(cell) if isinstance(cell, float) else cell for name, cell in row.items()} for row in rows
    )
    return buffer.getvalue()


def _to_parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = _columns(rows)
    arrays = [pa.array([row.get(name) for row in rows], _arrow_type(name)) for name in names]
    table = pa.Table.from_arrays(arrays, names=names)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"schema": NAME}), sink, compression="zstd")
    return sink.getvalue()


def _arrow_type(name: str) -> Any:
    import pyarrow as pa

    if name.startswith(_VALUE) or name == "noise":
        return pa.float64()
    head, _, field = name.partition(".")
    return pa.int64() if name in _WHOLE or (head in _NESTED and field in _NESTED[head][1]) else pa.string()


def _from_parquet(path: Path, limits: Limits) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path}: file does not exist")
    try:
        file = pq.ParquetFile(path)
        rows, columns = file.metadata.num_rows, file.metadata.num_columns
        if rows > limits.rows or rows * columns > _MAX_CELLS:
            raise InputError(f"{path}: {rows} rows of {columns} columns are more than the limit of {limits.rows} rows")
        _check_schema(file.schema_arrow, path)
        return file.read().to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is no valid Parquet file: {' '.join(str(error).split())[:200]}") from None


def _check_schema(schema: Any, path: Path) -> None:
    if not is_ours(schema.names):
        shown = ", ".join(schema.names[:5])
        raise InputError(f"{path}: is no table of measurements (its columns: {shown[:120]})")
    for field in schema:
        if field.type != _arrow_type(field.name):
            raise InputError(f"{path}: column {field.name} is of type {field.type}, must be {_arrow_type(field.name)}")


def _replace(path: Path, content: bytes) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(content)
        Path(file.name).replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
