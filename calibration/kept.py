"""What a fit has computed, kept in a folder: an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

import calibration.kernels
import moesim.costs
import moesim.network
from calibration.parameter_file import write_file
from moesim.specs.loading import config_root

FloatArray = NDArray[np.float64]
_PARTS = ("logs", "slopes")


def kept_linearisation(
    state: Path | None, question: bytes, make: Callable[[], tuple[FloatArray, FloatArray]]
) -> tuple[FloatArray, FloatArray]:
    """(logs, slopes) of `question` from the folder, or made and kept there; without a folder simply made.

    An answer of another version of the program, or a file that cannot be read whole, is made again.
    """
    if state is None:
        return make()
    path = state / f"{hashlib.sha256(program_digest() + question).hexdigest()[:32]}.npz"
    known = _read(path)
    if known is not None:
        return known
    made = make()
    content = io.BytesIO()
    np.savez(content, **dict(zip(_PARTS, made, strict=True)))
    write_file(path, content.getvalue())
    return made


def _read(path: Path) -> tuple[FloatArray, FloatArray] | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            return kept["logs"], kept["slopes"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


@cache
def program_digest() -> bytes:
    """Of everything that a prediction depends on beside its question: the source, and the configs but for the sets."""
    configs = [
        path for path in sorted(config_root().rglob("*.yaml")) if path.parent.name not in {"parameters", "calibration"}
    ]
    return _digest_of([*_sources(moesim), *_sources(calibration), *configs])


@cache
def formulas_digest() -> bytes:
    """Of the source that a fit of kernel tables depends on."""
    return _digest_of(
        [path for package in (calibration.kernels, moesim.costs, moesim.network) for path in _sources(package)]
    )


def _sources(package: ModuleType) -> list[Path]:
    return sorted(Path(str(package.__file__)).parent.rglob("*.py"))


def _digest_of(paths: Iterable[Path]) -> bytes:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.digest()
