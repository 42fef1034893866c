"""The folder that a server loads: a fetched snapshot, or the real configuration with random weights."""

from __future__ import annotations

import json
from pathlib import Path

from hw_validation.dummy_models import write_model_folder
from hw_validation.dummy_tokenizer import write_tokenizer
from hw_validation.experiment.paths import model_folder
from hw_validation.experiment.runs import Server
from moesim.errors import InputError
from moesim.specs.loading import read_document


def prepare_folder(server: Server, models_dir: Path) -> Path:
    """The server's folder, written where it holds random weights only.

    A fetched config.json is used for random weights where there is one; otherwise the configuration comes from
    configs/models by the family's template.

    Raises:
        InputError: a snapshot that was not fetched, or a family without a template.
    """
    folder = model_folder(server, models_dir)
    fetched = models_dir / server.model.huggingface_id.replace("/", "--")
    if server.measurement.load_format != "dummy":
        _check_snapshot(folder, server)
        return folder
    if (fetched / "config.json").is_file():
        _copy_config(fetched, folder, server)
    else:
        write_model_folder(server.model, folder)
    if not (folder / "tokenizer.json").is_file():
        write_tokenizer(folder, server.model.vocab_size)
    return folder


def _check_snapshot(folder: Path, server: Server) -> None:
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return
    name = server.model.huggingface_id
    raise InputError(
        f"{folder}: holds no snapshot of {name}; run `moesim-hw fetch {name}`, or set measurement.load_format: dummy"
    )


def _copy_config(fetched: Path, folder: Path, server: Server) -> None:
    """The fetched configuration with the planned number of layers, and the fetched tokenizer."""
    config = read_document(fetched / "config.json")
    name = "n_layers" if "n_layers" in config else "num_hidden_layers"
    if server.measurement.num_layers is not None:
        config[name] = server.measurement.num_layers
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in fetched.glob("*token*"):
        target = folder / path.name
        if not target.exists():
            target.symlink_to(path.resolve())
