"""Tensors of a `torch.save` file, read without torch and without running what a pickle could run.

A `.pt` file is a zip of raw storages and one pickle that says how tensors are made of them. The pickle is
interpreted by an unpickler that knows three functions of torch by name and refuses every other global, so nothing
from the file is ever called. Old files that are one bare pickle are refused.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError

_MOST_BYTES = 4_000_000_000
_DTYPES = {
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
}
_FIX = "save it again as NPZ: numpy.savez(path, logical_count=tensor.cpu().numpy())"
_DAMAGE = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    EOFError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    OSError,
)
"""What a file that was cut or altered makes the archive, the unpickler or numpy raise."""


def read_torch_archive(path: Path) -> Any:
    """The saved object: dicts, lists, numbers and texts, with numpy arrays in place of tensors.

    Raises:
        InputError: not a zip archive of torch, damaged, too large, or holding anything but plain data and tensors.
    """
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            raise InputError(f"routing: {path} is a bare pickle, which could run code when loaded; refused; {_FIX}")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > _MOST_BYTES:
                raise InputError(f"routing: {path} unpacks to {size} bytes; the limit is {_MOST_BYTES}")
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            if len(names) != 1:
                raise InputError(f"routing: {path} is no torch archive (it has no data.pkl); {_FIX}")
            return _Reader(archive, names[0].removesuffix("data.pkl"), path).load()
    except InputError:
        raise
    except _DAMAGE as error:
        raise InputError(f"routing: {path} is a damaged torch archive: {error}") from None


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, prefix: str, path: Path) -> None:
        super().__init__(io.BytesIO(archive.read(f"{prefix}data.pkl")))
        self._archive = archive
        self._prefix = prefix
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The few names that a file of tensors needs; anything else could run code."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise InputError(f"routing: {self._path} would call {module}.{name} when loaded; refused; {_FIX}")

    def persistent_load(self, pid: Any) -> NDArray[Any]:
        """A storage: flat values read from its own file of the archive."""
        _, dtype, key, _, size = pid
        values = np.frombuffer(self._archive.read(f"{self._prefix}data/{int(key)}"), dtype=np.dtype(str(dtype)))
        if len(values) < size:
            raise InputError(f"routing: {self._path} storage {key} has {len(values)} values, {size} are announced")
        return values


def _rebuild(
    storage: NDArray[Any], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> NDArray[Any]:
    """A strided view of a storage as an array of its own."""
    reach = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) + 1
    elements = math.prod(size)
    if elements * storage.itemsize > _MOST_BYTES:
        raise InputError(f"routing: a tensor of shape {tuple(size)} is too large (limit {_MOST_BYTES} bytes)")
    if min((*size, *stride, offset + 1), default=1) < 0 or (elements and reach > len(storage)):
        raise InputError(f"routing: a tensor of shape {tuple(size)} reaches beyond its storage")
    steps = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape=tuple(size), strides=steps).copy()
