"""`moesim models`: what is shipped, with computed counts and sources."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moesim.cli.options import AsJson, CsvFile


def models(
    name: Annotated[
        str | None, typer.Argument(help="Show one model (name, id or config.json) with its sources.")
    ] = None,
    as_json: AsJson = False,
    csv: CsvFile = None,
) -> None:
    """List the models, or show one with counts computed from its architecture and the source of each value."""
    from moesim.cli.output import deliver, print_rows
    from moesim.specs.catalog import get_model, list_models

    rows = [_row(model) for model in ([get_model(name)] if name else list_models().values())]
    if name:
        model = get_model(name)
        deliver(rows, lambda: _document(model), lambda: _show(model), as_json, csv)
    else:
        note = "Counts are computed; active counts embeddings and head. moesim models NAME: sources"
        print_rows("Models", rows, {"models": rows}, as_json, csv, note)


def _row(model: Any) -> dict[str, Any]:
    from moesim.specs.model import count_parameters, kv_bytes_per_token, weight_bytes

    counts, moe = count_parameters(model), model.moe
    return {
        "model": model.name,
        "decoding": model.decoding,
        "layers": model.num_layers,
        "experts": moe.num_experts if moe else 0,
        "top_k": moe.top_k if moe else 0,
        "total_params_b": counts.total / 1e9,
        "active_params_b": counts.active / 1e9,
        "weights_gb": weight_bytes(model) / 1e9,
        "kv_bytes_per_token": int(kv_bytes_per_token(model)),
        "experts_dtype": model.dtypes.experts if moe else model.dtypes.dense,
    }


def _parts(model: Any) -> dict[str, int]:
    import msgspec

    from moesim.specs.model import count_parameters

    counts = count_parameters(model)
    parts = {**msgspec.structs.asdict(counts), "total": counts.total, "active": counts.active}
    return parts | {"active_without_input_embedding": counts.active_without_input_embedding}


def _document(model: Any) -> dict[str, Any]:
    import msgspec

    return {**_row(model), "parameters": _parts(model), "architecture": msgspec.to_builtins(model)}


def _show(model: Any) -> None:
    from moesim.cli.output import print_table

    print_table(f"{model.name} ({model.huggingface_id})", [_row(model)])
    print_table("Parameters by part", [{"part": key, "weights": value} for key, value in _parts(model).items()])
    if model.sources:
        print_table("Sources", [{"field": key, "source": value} for key, value in model.sources.items()])
