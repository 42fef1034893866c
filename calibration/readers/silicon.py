"""Aggregated serving points of AIConfigurator's silicon sample (columns of silicon_e2e_points.csv)."""

from __future__ import annotations

from collections.abc import Mapping

from calibration.readers.inferencex import launch_flags
from calibration.readers.table import Row
from calibration.runs import MeasuredRun
from moesim.errors import InputError
from moesim.scenarios import Request
from moesim.specs.catalog import get_hardware, get_model
from moesim.specs.loading import convert

_MEAN_LENGTH, _SPREAD = 0.9, 1 / 9
"""Lengths are drawn evenly from 0.8 to 1.0 of the nominal ones (RANDOM_RANGE_RATIO of the InferenceX client)."""

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
    concurrency, hardware = row.integer("concurrency"), get_hardware(row.text("system")).name
    quantization = _quantization(row.text("moe_quant_mode"), model.dtypes.experts)
    known = {"concurrency": concurrency, "isl": row.integer("isl"), "quantization": quantization, "tp": tp}
    words = {
        "model": model.name,
        "hardware": hardware,
        "gpus": tp * dp,
        "tp": tp,
        "dp": dp,
        "ep": row.integer("moe_ep_size"),
        "input_len": round(_MEAN_LENGTH * row.integer("isl")),
        "output_len": round(_MEAN_LENGTH * row.integer("osl")),
        "range_ratio": _SPREAD,
        "enable_prefix_caching": False,
        "engine": row.text("backend"),
        "engine_version": row.text("backend_version"),
        "concurrency": concurrency,
        "num_prompts": _WAVES * concurrency,
        "quantization": quantization,
    }
    words |= launch_flags(model.name, hardware, row.text("backend"), row.text("backend_version"), known)
    request = convert(words, Request, f"{row.path} line {row.line}")
    measured = row.measured(METRICS)
    return MeasuredRun(
        id=row.identity,
        engine=row.text("backend"),
        request=request,
        measured=measured,
        flags=_flags(request, row.text("backend"), measured),
        series="/".join(row.text(name) for name in _SERIES),
        site="inferencex",
    )


_STALL_MS, _FEW = 3000.0, 128


def _flags(request: Request, backend: str, measured: Mapping[str, float]) -> tuple[str, ...]:
    """What the row's own figures tell of its launch.

    A request that waits longer than it is served meets an engine that holds less than half of the concurrency: where
    the script admits all, it was launched with another limit. SGLang builds kernels at first use: a prompt of few
    that waits seconds waited for that (later versions of the same points wait a tenth).
    """
    waited_ms, gap_ms = measured.get("silicon_ttft_ms", 0.0), measured.get("silicon_tpot_ms", 0.0)
    concurrency = request.concurrency or 0
    if (request.max_num_seqs or 0) == concurrency and waited_ms > gap_ms * request.output_len:
        return ("limit_unknown",)
    if backend == "sglang" and concurrency <= _FEW and waited_ms > _STALL_MS:
        return ("ttft_stall",)
    return ()


_SERIES = (
    "model_path", "system", "backend", "backend_version", "moe_quant_mode", "isl", "osl",
    "tp_size", "attention_dp_size", "moe_ep_size",
)  # fmt: skip
"""Columns that all points of one concurrency sweep share."""


def _quantization(mode: str, checkpoint: str) -> str:
    """NVFP4 re-quantised checkpoints are named; every other mode is what the public checkpoint holds.

    gpt-oss rows say nvfp4 although its public weights are MXFP4.
    """
    return "nvfp4" if mode == "nvfp4" and checkpoint != "mxfp4" else "none"
