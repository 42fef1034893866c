"""Where models lie on the measuring machine."""

from __future__ import annotations

from pathlib import Path

from hw_validation.experiment.runs import Server


def model_folder(server: Server, models_dir: Path) -> Path:
    """The folder a server loads: a fetched snapshot, or a folder with a configuration and random weights."""
    if server.measurement.load_format == "dummy":
        layers = f"-{server.num_layers}layers" if server.measurement.num_layers else ""
        return models_dir / "dummy" / f"{server.model.name}{layers}"
    return models_dir / server.model.huggingface_id.replace("/", "--")
