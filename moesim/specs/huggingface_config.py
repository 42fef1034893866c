"""Typed reads of a Hugging Face config.json whose errors name the file and the field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from moesim.errors import InputError

_LARGEST = 10**9


@dataclass(frozen=True, slots=True)
class Config:
    """A JSON object whose reads are typed and whose errors name the file and the field. Null means absent."""

    values: dict[str, Any]
    where: str
    prefix: str = ""

    def integer(self, *names: str, default: int | None = None, low: int = 1, high: int = _LARGEST) -> int:
        """The whole number under the first of `names` that is present."""
        name, value = self._first(names)
        if value is None and default is not None:
            return default
        if type(value) is not int or not low <= value <= high:
            raise self.error(name, f"should be a whole number from {low} to {high}")
        return value

    def flag(self, *names: str, default: bool = False) -> bool:
        """The true/false under the first of `names` that is present."""
        name, value = self._first(names)
        if not isinstance(value, bool | None):
            raise self.error(name, "should be true or false")
        return default if value is None else value

    def text(self, *names: str, default: str = "") -> str:
        """The string under the first of `names` that is present."""
        name, value = self._first(names)
        if not isinstance(value, str | None):
            raise self.error(name, "should be a string")
        return value or default

    def list_of(self, name: str, kind: type[Any]) -> list[Any]:
        """A list whose items are all of `kind`; empty when absent."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or any(type(item) is not kind for item in cast("list[Any]", value)):
            raise self.error(name, f"should be a list of {kind.__name__}")
        return cast("list[Any]", value)

    def section(self, name: str) -> Config:
        """The object under `name`."""
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.error(name, "should be an object")
        return Config(cast("dict[str, Any]", value), self.where, f"{self.prefix}{name}.")

    def has(self, name: str) -> bool:
        """True when `name` is present and not null."""
        return self.values.get(name) is not None

    def error(self, name: str, should: str) -> InputError:
        """The error for field `name`."""
        key = name.split(" ", maxsplit=1)[0]
        state = f"is {self.values[key]!r:.60}" if self.has(key) else "is missing"
        return InputError(f"{self.where}: {self.prefix}{name} {state}; it {should}")

    def _first(self, names: tuple[str, ...]) -> tuple[str, Any]:
        for name in names:
            if self.has(name):
                return name, self.values[name]
        return names[0] + "".join(f" (or {name})" for name in names[1:]), None
