"""`moesim hardware`: accelerators, their data-sheet and measured figures, with sources."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moesim.cli.options import AsJson, CsvFile


def hardware(
    name: Annotated[str | None, typer.Argument(help="Show one accelerator with its sources.")] = None,
    as_json: AsJson = False,
    csv: CsvFile = None,
) -> None:
    """List the accelerators, or show one with its measured figures, parameter set and the source of each value."""
    from moesim.cli.output import deliver, print_rows
    from moesim.specs.catalog import get_hardware, list_hardware

    rows = [_row(item) for item in ([get_hardware(name)] if name else list_hardware().values())]
    if name:
        item = get_hardware(name)
        deliver(rows, lambda: _document(item), lambda: _show(item), as_json, csv)
    else:
        note = "Dense peak rates from data sheets. moesim hardware NAME: sources"
        print_rows("Hardware", rows, {"hardware": rows}, as_json, csv, note)


def _row(item: Any) -> dict[str, Any]:
    from moesim.specs.parameters import select_parameters

    peak = item.peak_flops_per_s
    return {
        "hardware": item.name,
        "hbm_gb": item.hbm_bytes_visible / 1e9,
        "hbm_tb_per_s": item.hbm_bandwidth_bytes_per_s / 1e12,
        "bf16_tflops": peak["bf16"] / 1e12,
        "fp8_tflops": peak["fp8"] / 1e12 if "fp8" in peak else None,
        "fp4_tflops": peak["fp4"] / 1e12 if "fp4" in peak else None,
        "fabric": item.fabric.kind,
        "fabric_gb_per_s": item.fabric.bandwidth_bytes_per_s / 1e9,
        "per_node": item.accelerators_per_node,
        "nic_gb_per_s": item.nic.bandwidth_bytes_per_s / 1e9,
        "parameter_set": select_parameters(item).name,
    }


def _document(item: Any) -> dict[str, Any]:
    import msgspec

    return {**_row(item), "data_sheet": msgspec.to_builtins(item)}


def _show(item: Any) -> None:
    from moesim.cli.output import print_table

    print_table(item.name, [_row(item)])
    if item.published:
        print_table("Measured", [{"figure": key, "value": value} for key, value in item.published.items()])
    print_table("Sources", [{"field": key, "source": value} for key, value in item.sources.items()])
