"""`moesim-hw fetch`: model snapshots, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MODELS_DIR = Path("models")


def fetch(
    models: Annotated[
        list[str], typer.Argument(help="Names in configs/models or owner/name, each optionally @REVISION.")
    ],
    models_dir: Annotated[Path, typer.Option(help="Folder of all snapshots.")] = MODELS_DIR,
    mirror: Annotated[
        str | None, typer.Option(help="URL of a mirror of the hub [default: $HF_ENDPOINT, or the hub].")
    ] = None,
    file: Annotated[list[str] | None, typer.Option(help="Fetch only these files (repeat).")] = None,
    config_only: Annotated[bool, typer.Option(help="Leave the weights out (for random weights).")] = False,
    dry_run: Annotated[bool, typer.Option(help="List and count, download nothing.")] = False,
) -> None:
    """Download configurations, tokenizers and safetensors of models; checksums verified, broken downloads taken up.

    Code and pickled files are never fetched. Example: moesim-hw fetch olmoe-1b-7b mixtral-8x7b@main
    """
    from hw_validation.fetch.download import fetch as download
    from hw_validation.fetch.listing import endpoint, list_files
    from moesim.cli.output import progress, stderr

    base = endpoint(mirror)
    for model in models:
        repo, revision = _split(model)
        listing = list_files(repo, revision, base, tuple(file or ()), weights=not config_only)
        folder = models_dir / repo.replace("/", "--")
        typer.echo(f"{repo} {listing.commit}: {len(listing.files)} files, {listing.num_bytes / 1e9:.2f} GB -> {folder}")
        if listing.left_out:
            stderr().print(f"left out: {', '.join(listing.left_out)}", soft_wrap=True)
        if not dry_run:
            with progress(repo) as update:
                download(listing, base, folder, update)


def _split(model: str) -> tuple[str, str]:
    """(owner/name, revision) of a word on the command line."""
    from moesim.specs.catalog import get_model

    name, _, revision = model.partition("@")
    repo = name if "/" in name else get_model(name).huggingface_id
    return repo, revision or "main"
