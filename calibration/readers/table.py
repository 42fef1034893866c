"""CSV rows with checked numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from calibration.sources import read_table
from moesim.errors import InputError


@dataclass(frozen=True, slots=True)
class Row:
    """One CSV row and where it stands."""

    path: Path
    line: int
    cells: dict[str, str]

    @property
    def identity(self) -> str:
        """The file's row id."""
        return self.cells.get("row_id") or self.cells.get("id") or f"{self.path.name}#{self.line}"

    def text(self, column: str) -> str:
        """A cell as text; '' when empty or absent."""
        return (self.cells.get(column) or "").strip()

    def number(self, column: str) -> float:
        """A finite, non-negative number. Raises InputError naming file, line, column and value."""
        try:
            value = float(self.text(column))
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0:
            raise InputError(
                f"{self.path} line {self.line}: {column} is {self.text(column)!r}, must be a finite number of 0 or more"
            )
        return value

    def integer(self, column: str) -> int:
        """A whole number."""
        value = self.number(column)
        if value != int(value):
            raise InputError(f"{self.path} line {self.line}: {column} is {value}, must be a whole number")
        return int(value)

    def measured(self, columns: tuple[str, ...]) -> dict[str, float]:
        """The columns that are filled in, as numbers; a measured time or rate of zero is refused."""
        values = {name: self.number(name) for name in columns if self.text(name)}
        for name, value in values.items():
            if value == 0:
                raise InputError(f"{self.path} line {self.line}: {name} is 0, must be positive")
        return values


def read_rows(path: Path) -> list[Row]:
    """All rows of a CSV file with a header. Raises InputError when there is none."""
    rows = [Row(row.path, row.line, row.cells) for row in read_table(path)]
    if not rows:
        raise InputError(f"{path}: holds no rows")
    return rows
