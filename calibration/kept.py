"""What a fit has computed, kept in a folder: an interrupted one goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

import calibration.kernels
import moesim.costs
import moesim.network
from calibration.parameter_file import write_file
from moesim.specs.loading import config_root

Arrays = tuple[NDArray[np.float64], ...]
T = TypeVar("T")
_TORN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError)


@dataclass(frozen=True, slots=True)
class Form(Generic[T]):
    """How an answer lies in a file: what its name ends with, and both ways between it and bytes.

    `decode` raises one of `_TORN` for bytes that are not whole.
    """

    suffix: str
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


def kept_answer(state: Path | None, question: Callable[[], bytes], form: Form[T], make: Callable[[], T]) -> T:
    """The answer to `question` from the folder, or made and kept there; without a folder simply made.

    `question`: everything that the answer depends on. A file that cannot be read whole is made again.
    """
    if state is None:
        return make()
    path = state / f"{hashlib.sha256(question()).hexdigest()[:32]}.{form.suffix}"
    with contextlib.suppress(*_TORN):
        return form.decode(path.read_bytes())
    made = make()
    write_file(path, form.encode(made))
    return made


def _to_npz(arrays: Arrays) -> bytes:
    content = io.BytesIO()
    np.savez(content, *arrays)
    return content.getvalue()


def _from_npz(content: bytes) -> Arrays:
    with np.load(io.BytesIO(content), allow_pickle=False) as kept:
        return tuple(kept[name] for name in kept.files)


ARRAYS = Form("npz", _to_npz, _from_npz)


@cache
def program_digest() -> bytes:
    """Of everything that a prediction depends on beside its question: the source, and the configs but for the sets."""
    configs = [
        path for path in sorted(config_root().rglob("*.yaml")) if path.parent.name not in {"parameters", "calibration"}
    ]
    return _digest_of([*_sources(moesim), *_sources(calibration), *configs])


@cache
def formulas_digest() -> bytes:
    """Of the source that a fit of kernel tables depends on, and of the tiles that libraries ship."""
    sources = [path for package in (calibration.kernels, moesim.costs, moesim.network) for path in _sources(package)]
    return _digest_of([*sources, *sorted((config_root() / "kernels").glob("*.yaml"))])


def _sources(package: ModuleType) -> list[Path]:
    return sorted(Path(str(package.__file__)).parent.rglob("*.py"))


def _digest_of(paths: Iterable[Path]) -> bytes:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.digest()
