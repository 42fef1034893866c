"""Measured kernel tables: one Parquet file a system, library and operator, one row a measured shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.specs.catalog import get_hardware
from moesim.specs.hardware import Accelerator

FloatArray = NDArray[np.float64]
_MAX_BYTES = 200_000_000
ACCELERATORS = {"a100_sxm": "a100-80gb", "h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300"}
"""Accelerators by the folder name of their tables."""


@dataclass(frozen=True, slots=True)
class KernelTable:
    """Rows of `<system>/<library>/<operator>_perf.parquet` as columns; `rows` are their numbers in the file."""

    path: Path
    system: str
    library: str
    operator: str
    rows: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.generic]]

    def __len__(self) -> int:
        return len(self.rows)

    def number(self, name: str) -> FloatArray:
        """A numeric column. Raises InputError when it is missing or holds anything but finite numbers."""
        try:
            values = self.columns[name].astype(np.float64)
        except KeyError:
            raise InputError(f"{self.path}: has no column {name!r}") from None
        except (TypeError, ValueError):
            raise InputError(f"{self.path}: column {name!r} holds text, not numbers") from None
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise InputError(
                f"{self.path} row {self.rows[bad[0]]}: {name} is {values[bad[0]]}, must be a finite number"
            )
        return values

    def text(self, name: str) -> NDArray[np.str_]:
        """A text column. Raises InputError when it is missing."""
        if name not in self.columns:
            raise InputError(f"{self.path}: has no column {name!r}")
        return self.columns[name].astype(np.str_)

    def has(self, name: str) -> bool:
        """Whether the file has a column of this name."""
        return name in self.columns

    def where(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> KernelTable:
        """The rows that a mask or an index keeps."""
        columns = {name: values[mask] for name, values in self.columns.items()}
        return KernelTable(self.path, self.system, self.library, self.operator, self.rows[mask], columns)

    def ids(self) -> list[str]:
        """Row ids: `<system>/<library>/<file>#<row>`."""
        name = f"{self.system}/{self.library}/{self.path.name}"
        return [f"{name}#{row}" for row in self.rows.tolist()]

    @property
    def accelerator(self) -> Accelerator:
        """What the rows were measured on."""
        return get_hardware(ACCELERATORS.get(self.system, self.system))

    def seconds(self, column: str = "latency") -> FloatArray:
        """Measured seconds: `latency` is in ms, columns that end in `_us` in microseconds."""
        scale = 1e-6 if column.endswith("_us") else 1e-3
        values = self.number(column) * scale
        bad = np.flatnonzero(values <= 0)
        if len(bad):
            raise InputError(f"{self.path} row {self.rows[bad[0]]}: {column} is {values[bad[0]]}, must be positive")
        return values


def read_table(path: Path) -> KernelTable:
    """Read one table. Raises InputError when the file is missing, too large, empty or not Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(f"{path}: file does not exist")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes is too large (limit {_MAX_BYTES})")
    try:
        data = pq.read_table(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: is not readable Parquet: {str(error).splitlines()[0]}") from None
    if not data.num_rows:
        raise InputError(f"{path}: holds no rows")
    columns = {name: data.column(name).to_numpy() for name in data.column_names}
    return KernelTable(
        path=path,
        system=path.parent.parent.name,
        library=path.parent.name,
        operator=path.stem.removesuffix("_perf"),
        rows=np.arange(data.num_rows),
        columns=columns,
    )
