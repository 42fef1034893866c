"""Files become types here: strict YAML/JSON through msgspec, with errors that name file, field and value."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import yaml
from yaml.composer import ComposerError
from yaml.error import Mark

from moesim.errors import InputError, nearest

T = TypeVar("T")
_MAX_CONFIG_BYTES = 4_000_000
_MAX_DEPTH = 60
_Loader = cast("type[yaml.SafeLoader]", getattr(yaml, "CSafeLoader", yaml.SafeLoader))
_SCIENTIFIC = re.compile(r"^[+-]?\d+(\.\d*)?[eE][+-]?\d+$")
_UNKNOWN = re.compile(r"unknown field `(?P<field>[^`]+)`(?: - at `\$(?P<path>[^`]*)`)?")
_AT = re.compile(r" - at `\$\.?(?P<path>[^`]*)`")


def _parse_yaml(text: str) -> Any:
    """Safe YAML, parsed in C where PyYAML brings libyaml.

    Aliases are refused (they can multiply a few lines into more than any memory holds), and so is deep nesting.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ComposerError(None, None, "aliases (*name) are not allowed", cast("Mark | None", event.start_mark))
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ComposerError(
                None, None, f"nesting deeper than {_MAX_DEPTH} levels", cast("Mark | None", event.start_mark)
            )
    return yaml.load(text, Loader=_Loader)


def config_root() -> Path:
    """Folder of the shipped configs: inside the package when installed, beside it in a source tree."""
    packaged = Path(__file__).resolve().parent.parent / "configs"
    return packaged if packaged.is_dir() else packaged.parent.parent / "configs"


def read_document(path: Path) -> Any:
    """Parse a YAML or JSON file into plain Python data.

    Raises:
        InputError: file missing, too large, not text, not valid, or holding an infinite or NaN number.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes is too large for a configuration (limit 4 MB)")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        document = json.loads(text) if path.suffix == ".json" else _parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark is not None else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise InputError(f"{path}:{line} is not valid YAML: {problem}") from None
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise InputError(f"{path}: is not valid {kind}: {error}") from None
    try:
        _refuse_non_finite(document, path, "")
    except RecursionError:
        raise InputError(f"{path}: is nested too deeply") from None
    return document


def _refuse_non_finite(value: Any, path: Path, field: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{path}: {field} is {value}; give a finite number")
    if isinstance(value, dict):
        for key, inner in cast("dict[Any, Any]", value).items():
            _refuse_non_finite(inner, path, f"{field}.{key}" if field else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(cast("list[Any]", value)):
            _refuse_non_finite(inner, path, f"{field}[{index}]")


def convert(document: Any, kind: type[T], where: str) -> T:
    """Turn plain data into a frozen type, strictly; raises InputError naming `where`, field, value and fix."""
    try:
        return msgspec.convert(document, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_explain(str(error), document, kind)}") from None


def load(path: Path, kind: type[T]) -> T:
    """Read `path` and convert it to `kind`."""
    return convert(read_document(path), kind, str(path))


def _explain(message: str, document: Any, kind: type[Any]) -> str:
    unknown = _UNKNOWN.search(message)
    if unknown:
        inside = (unknown["path"] or "").lstrip(".")
        known = _field_names(kind)
        field = f"{inside}.{unknown['field']}" if inside else unknown["field"]
        return f"unknown field {field!r}; {nearest(unknown['field'], known)}"
    at = _AT.search(message)
    if not at:
        return message
    value = _value_at(document, at["path"])
    text = f"field {at['path']!r}: {message[: at.start()].lower()}, value {value!r}"
    if isinstance(value, str) and _SCIENTIFIC.match(value):
        text += f"; YAML reads {value} as text, write {float(value):.6e}".replace("e+", "e+")
    return text


def _field_names(kind: Any) -> list[str]:
    """Field names of a struct and of every struct inside it."""
    names: list[str] = []
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            names.append(field.name)
            names.extend(_field_names(field.type))
    for inner in getattr(kind, "__args__", ()):
        names.extend(_field_names(inner))
    return names


def _value_at(document: Any, path: str) -> Any:
    value = document
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return "?"
    return value
