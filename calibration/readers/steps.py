"""Points of step sweeps (decode, prefill, mixed) as measured runs of one step."""

from __future__ import annotations

from calibration.readers.words import engine_words, find_accelerator
from calibration.runs import MeasuredRun, StepPoint
from calibration.schema import Measurement
from moesim.errors import InputError
from moesim.scenarios import Request
from moesim.specs.catalog import get_model
from moesim.specs.loading import convert

KINDS = frozenset({"decode_step", "prefill_step", "mixed_step", "counters"})
_COUNTED = ("dram_read_bytes", "dram_written_bytes")
_METRICS = {"gpu_median_ms": "step_gpu_ms", "launch_median_ms": "step_launch_ms"}
_HOST_NOISE, _BOUND_SHARE = 6.0, 0.95


SKEWED = "its routers were redrawn unevenly, and the experts' popularity is not in the record"


def is_skewed(item: Measurement) -> bool:
    """Whether some experts were made popular for this point alone."""
    return float(item.point.get("router_spread", 0.0) or 0.0) > 0


def step_run(item: Measurement) -> MeasuredRun | str:
    """The record as a run of one step, or the reason why it is none."""
    if is_skewed(item):
        return SKEWED
    measured = {word: item.values[name] for name, word in _METRICS.items() if item.values.get(name, 0) > 0}
    if item.kind == "counters":
        if not all(name in item.values for name in _COUNTED) or "batch_size" not in item.point:
            return "is a record of kind counters without the DRAM bytes of a step"
        measured = {"dram_bytes": sum(item.values[name] for name in _COUNTED)}
    if not measured:
        return "holds no step time"
    try:
        hardware, model = find_accelerator(item.hardware.accelerator), get_model(item.model)
        words = {"model": model.name, "hardware": hardware, "frontend": "offline", **engine_words(item.flags)}
        request = convert({**words, "concurrency": 1, "num_prompts": 1}, Request, item.id)
    except InputError as error:
        return str(error)
    if _replayed(item) and not request.enforce_eager:
        measured.pop("step_launch_ms", None)  # a replay waits for the step before, so it tells nothing of the host
    layers = item.layers if item.layers != model.num_layers else None
    return MeasuredRun(
        id=f"{item.site}/{item.id}" if item.site else item.id,
        engine=item.software.engine,
        request=request,
        measured=measured,
        configuration=item.configuration,
        series=item.series or item.id.rpartition("/")[0],
        site=item.site,
        noise=item.noise * (_HOST_NOISE if _host_bound(item) else 1.0),
        step=_step(item),
        layers=layers,
    )


def _replayed(item: Measurement) -> bool:
    """Whether the step's tokens fit a captured graph."""
    sizes = item.flags.get("cudagraph_capture_sizes") or [0]
    return item.values.get("padded_tokens_mean", 0.0) <= max(sizes)


def _host_bound(item: Measurement) -> bool:
    """Whether launching took as long as the GPU's events saw (what the host takes varies from point to point)."""
    return item.values.get("launch_median_ms", 0.0) > _BOUND_SHARE * item.values.get("gpu_median_ms", 1e9)


def _step(item: Measurement) -> StepPoint:
    point, values = item.point, item.values
    if item.kind == "counters":
        prompt = int(point.get("prefill_tokens", 0))
        return StepPoint(
            decodes=int(point["batch_size"]),
            context_tokens=float(point.get("context_len", 0)),
            chunks=1 if prompt else 0,
            chunk_tokens=prompt,
        )
    if item.kind == "decode_step":
        return StepPoint(decodes=point["batch_size"], context_tokens=values["context_tokens_mean"])
    prompts = int(point.get("num_prompts", 1))
    tokens = round(values["prefill_tokens_mean"])
    return StepPoint(
        decodes=int(point.get("batch_size", 0)),
        context_tokens=values["context_tokens_mean"],
        chunks=prompts,
        chunk_tokens=tokens,
        pairs=values["prefill_pairs_mean"],
        kv_tokens=float(tokens),
    )
