"""Aggregated serving points of AIConfigurator's silicon sample (columns of silicon_e2e_points.csv)."""

from __future__ import annotations

from calibration.readers.table import Row
from calibration.runs import MeasuredRun
from moesim.errors import InputError
from moesim.scenarios import Request
from moesim.specs.catalog import get_model

METRICS = ("silicon_ttft_ms", "silicon_tpot_ms")
_WAVES = 10
"""The number of prompts is not recorded; the source's harness sends about ten waves of the concurrency."""


def read_row(row: Row) -> MeasuredRun | str:
    """A row as a measured run, or the reason it is skipped."""
    if row.text("backend") == "trtllm":
        return "TensorRT-LLM is not modelled (vLLM and SGLang are)"
    tp, dp = row.integer("tp_size"), row.integer("attention_dp_size")
    if tp * dp > 8:
        return f"names {tp * dp} GPUs: the source multiplied its parallel sizes twice"
    try:
        model = get_model(row.text("model_path"))
    except InputError as error:
        return str(error)
    concurrency = row.integer("concurrency")
    request = Request(
        model=model.name,
        hardware=row.text("system"),
        gpus=tp * dp,
        tp=tp,
        dp=dp,
        ep=row.integer("moe_ep_size"),
        input_len=row.integer("isl"),
        output_len=row.integer("osl"),
        concurrency=concurrency,
        num_prompts=_WAVES * concurrency,
        quantization=_quantization(row.text("moe_quant_mode"), model.dtypes.experts),
    )
    return MeasuredRun(id=row.identity, engine=row.text("backend"), request=request, measured=row.measured(METRICS))


def _quantization(mode: str, checkpoint: str) -> str:
    """NVFP4 re-quantised checkpoints are named; every other mode is what the public checkpoint holds.

    gpt-oss rows say nvfp4 although its public weights are MXFP4.
    """
    return "nvfp4" if mode == "nvfp4" and checkpoint != "mxfp4" else "none"
