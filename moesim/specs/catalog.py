"""The shipped models, hardware and parameter sets by name, alias or Hugging Face id; or a user's own file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypeVar

from moesim.errors import InputError, nearest
from moesim.specs.hardware import Accelerator, check_accelerator
from moesim.specs.huggingface import UNSUPPORTED, model_from_huggingface
from moesim.specs.loading import config_root, load, read_document
from moesim.specs.model import Model, check_model

Named = TypeVar("Named", Model, Accelerator)


@cache
def list_models() -> dict[str, Model]:
    """All shipped models by canonical name."""
    paths = sorted((config_root() / "models").glob("*.yaml"))
    return {model.name: model for model in (check_model(load(path, Model), str(path)) for path in paths)}


@cache
def list_hardware() -> dict[str, Accelerator]:
    """All shipped accelerators by canonical name."""
    paths = sorted((config_root() / "hardware").glob("*.yaml"))
    return {item.name: item for item in (check_accelerator(load(path, Accelerator), str(path)) for path in paths)}


def get_model(name: str) -> Model:
    """The model called `name` (any case), an alias or Hugging Face id of one, or a path to a file.

    A path may be a moesim model YAML or any Hugging Face config.json of a supported family (a folder that
    holds one works too).

    Raises:
        InputError: unknown name (with the nearest ones), or a file that is no such model.
    """
    if _looks_like_path(name):
        return _read_model(Path(name))
    _refuse_unsupported(name)
    keys = {key.lower(): model for model in list_models().values() for key in _model_keys(model)}
    return _find(name, keys, "model", "or give a path to a config.json")


def get_hardware(name: str) -> Accelerator:
    """The accelerator called `name` (any case) or an alias, or a path to a hardware YAML."""
    if _looks_like_path(name):
        path = Path(name)
        return check_accelerator(load(path, Accelerator), str(path))
    keys = {key.lower(): item for item in list_hardware().values() for key in (item.name, *item.aliases)}
    return _find(name, keys, "hardware", "or give a path to a hardware YAML")


def _model_keys(model: Model) -> tuple[str, ...]:
    return (model.name, model.huggingface_id, model.huggingface_id.rsplit("/", 1)[-1], *model.aliases)


def _looks_like_path(name: str) -> bool:
    return name.endswith((".json", ".yaml", ".yml")) or Path(name).is_dir()


def _read_model(path: Path) -> Model:
    file = path / "config.json" if path.is_dir() else path
    if file.suffix != ".json":
        return check_model(load(file, Model), str(file))
    document = read_document(file)
    if not isinstance(document, dict):
        raise InputError(f"{file}: is not a config.json (top level is {type(document).__name__}, not an object)")
    return model_from_huggingface(document, str(file))


def _refuse_unsupported(name: str) -> None:
    lowered = {key.lower(): reason for key, reason in UNSUPPORTED.items()}
    if name.lower() in lowered:
        raise InputError(f"model {name!r} is not supported: {lowered[name.lower()]}")


def _find(name: str, keys: dict[str, Named], what: str, other: str) -> Named:
    found = keys.get(name.lower())
    if found is None:
        raise InputError(f"unknown {what} {name!r}; {nearest(name, keys)} ({other})")
    return found
