"""Points of step sweeps (decode, prefill, mixed) as measured runs of one step."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from calibration.readers.words import engine_words, find_accelerator
from calibration.runs import MeasuredRun, StepPoint
from calibration.schema import Measurement
from calibration.steps import with_layers
from moesim.errors import InputError
from moesim.scenarios import Request
from moesim.specs.catalog import get_hardware, get_model
from moesim.specs.loading import convert
from moesim.specs.model import kv_bytes_per_token

KINDS = frozenset({"decode_step", "prefill_step", "mixed_step", "counters", "kernels"})
_COUNTED = ("dram_read_bytes", "dram_written_bytes")
_HOST_NOISE, _ROUTED_NOISE, _SCRAMBLED_NOISE, _BOUND_SHARE = 6.0, 4.0, 24.0, 0.95
_PADDED = 16
"""The compiler pads rows to a multiple of as many numbers."""
_FEW_SEQUENCES = 16
"""So few do not keep the host from replaying a graph."""
_PROFILED_AFTER = 5
"""Tokens that sequences had decoded when their steps were profiled, about."""
_EXPERTS = re.compile(r"fused_moe_kernel|moe_align|count_and_sort|moe_sum|act_and_mul")
_ATTENTION = re.compile(r"flash|fmha|attention|mla_", re.IGNORECASE)
"""Kernels of routed experts (sort, products, activation, sum) and of attention (writing the cache, joining splits)."""
_STEADY_SPREAD = 1.06
"""Repeats of a step that the GPU decides differ by less from their tenth to their ninetieth percentile."""

MOVED = "EPLB moved its popular experts, and a step alone does not say where"
SKEWED = "some of its experts were made popular, and moesim has no name for which"


def is_skewed(item: Measurement) -> bool:
    """Whether some experts were made popular for this point alone."""
    return float(item.point.get("router_spread", 0.0) or 0.0) > 0


def routing_of(item: Measurement) -> str | None:
    """The point's routing in the simulator's words; None where it has none (see `SKEWED`).

    Forced routing draws every token's experts anew with the recorded shares, so that prompts are not routed alike.
    """
    if not is_skewed(item):
        return "uniform"
    falling = item.point.get("router_falling") is True and item.flags.get("forced_routing") is True
    return f"falling:{item.point['router_spread']}" if falling else None


_TIMED = frozenset({"decodes_mean", "context_tokens_mean", "forward_median_ms"})
ALIKE = "longer contexts cost less than their cache takes to read: its random weights routed the sequences alike"


def routed_alike(items: Iterable[Measurement]) -> set[str]:
    """Decode points whose time beyond the same batch at a shorter context cannot hold the reading of the cache.

    Random weights give sequences of long contexts nearly the same hidden state, so that they share experts; only the
    difference between two contexts shows it, where it moves the cache faster than the memory's peak.
    """
    points: dict[tuple[str, str, float], list[Measurement]] = {}
    for item in filter(_shows_its_cache, items):
        points.setdefault((item.site, item.model, item.values["decodes_mean"]), []).append(item)
    found: set[str] = set()
    for same in points.values():
        ordered = sorted(same, key=lambda item: item.values["context_tokens_mean"])
        found |= {long.id for short, long in pairwise(ordered) if _impossible(short, long)}
    return found


def _shows_its_cache(item: Measurement) -> bool:
    """Whether the point is a GPU-timed decode step of random weights whose whole cache one GPU holds."""
    whole = item.weights == "dummy" and item.flags.get("tensor_parallel_size", 1) == 1
    return whole and _replayed(item) and not is_skewed(item) and _TIMED.issubset(item.values)


def _impossible(short: Measurement, long: Measurement) -> bool:
    try:
        model = with_layers(get_model(long.model), long.layers)
        accelerator = get_hardware(find_accelerator(long.hardware.accelerator))
    except InputError:
        return False
    tokens = long.values["context_tokens_mean"] - short.values["context_tokens_mean"]
    longer_s = 1e-3 * (long.values["forward_median_ms"] - short.values["forward_median_ms"])
    least_s = tokens * kv_bytes_per_token(model) / accelerator.hbm_bandwidth_bytes_per_s
    return tokens > 0 and longer_s < least_s


def step_run(item: Measurement) -> MeasuredRun | str:
    """The record as a run of one step, or the reason why it is none."""
    if reason := _no_time(item):
        return reason
    if item.kind == "counters":
        if not all(name in item.values for name in _COUNTED) or "batch_size" not in item.point:
            return "is a record of kind counters without the DRAM bytes of a step"
        measured = {"dram_bytes": sum(item.values[name] for name in _COUNTED)}
    elif item.kind == "kernels":
        if item.point.get("prefill_tokens") or not item.tables.get("kernels"):
            return "is a profile of a prompt or holds no kernels: moesim compares the kernels of decode steps"
        measured = _kernel_times(item.tables["kernels"])
    else:
        measured = {name: value for name, value in _times(item).items() if value > 0}
    if not measured:
        return "holds no step time"
    try:
        hardware, model = find_accelerator(item.hardware.accelerator), get_model(item.model)
        words = {"model": model.name, "hardware": hardware, "frontend": "offline", **engine_words(item.flags)}
        words |= {"routing": routing_of(item), "concurrency": 1, "num_prompts": 1}
        request = convert(words, Request, item.id)
    except InputError as error:
        return str(error)
    layers = item.layers if item.layers != model.num_layers else None
    return MeasuredRun(
        id=f"{item.site}/{item.id}" if item.site else item.id,
        engine=item.software.engine,
        request=request,
        measured=measured,
        configuration=item.configuration,
        series=item.series or item.id.rpartition("/")[0],
        site=item.site,
        noise=item.noise * _noise(item),
        step=_step(item),
        layers=layers,
    )


def _no_time(item: Measurement) -> str:
    """Why the record says nothing about what a step of known routing takes, or ''."""
    if routing_of(item) is None:
        return SKEWED
    if is_skewed(item) and item.flags.get("enable_eplb"):
        return MOVED
    if item.flags.get("returns_routed_experts"):
        return "returned routed experts, which slows a step: it tells of routing, not of time"
    return ""


def _times(item: Measurement) -> dict[str, float]:
    """What the step's times tell of: a whole replayed graph of the GPU alone, anything else of GPU and host.

    Steps in a row are told apart by their repeats: where those differ, the host decided when the next one began. How
    long the host takes to replay a graph shows where few sequences keep it from more, and no other rank.
    """
    values = item.values
    step, launch = values.get("gpu_median_ms", 0.0), values.get("launch_median_ms", 0.0)
    if not _replayed(item):
        pieces = _graph_mode(item) == "PIECEWISE"  # whose launching waits for pieces before it
        return {"step_gpu_ms": step} if pieces else {"step_gpu_ms": step, "step_launch_ms": launch}
    steady = values.get("gpu_p90_ms", step) < _STEADY_SPREAD * values.get("gpu_p10_ms", step)
    alone = item.flags.get("data_parallel_size", 1) == 1 and item.point["batch_size"] <= _FEW_SEQUENCES
    times = {"step_forward_ms": values.get("forward_median_ms", 0.0), "step_gpu_ms": step if steady else 0.0}
    return times | {"step_replay_ms": launch if alone else 0.0}


def _kernel_times(rows: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Milliseconds of a step's kernels by what they do, from (name, calls, microseconds)."""
    found = {"step_experts_ms": _EXPERTS, "step_attention_ms": _ATTENTION}
    sums = {name: 1e-3 * sum(row[2] for row in rows if words.search(row[0])) for name, words in found.items()}
    return {name: value for name, value in sums.items() if value > 0}


def _replayed(item: Measurement) -> bool:
    """Whether one captured graph was the whole forward pass (prompts cut it at every attention)."""
    return item.kind == "decode_step" and _graph_mode(item) == "FULL"


def _graph_mode(item: Measurement) -> str:
    """How the last recorded step was run: FULL, PIECEWISE or NONE; '' where it is not recorded."""
    return str(item.steps.get("graph_mode", [""])[-1])


def _noise(item: Measurement) -> float:
    """How much less than a replayed graph a step tells of the constants.

    What the host takes varies from point to point, where launching lasts as long as the forward pass. How alike the
    few tokens of a prompt are routed is the random weights' own (Mixtral's 16 tokens took two thirds of what
    independent ones would, DeepSeek-V3's all of it).
    """
    passed = item.values.get("forward_median_ms", item.values.get("gpu_median_ms", 1e9))
    if not _replayed(item) and item.values.get("launch_median_ms", 0.0) > _BOUND_SHARE * passed:
        return _HOST_NOISE
    if _graph_mode(item) != "PIECEWISE" or item.weights != "dummy":
        return 1.0
    return _SCRAMBLED_NOISE if _scrambled(item) else _ROUTED_NOISE


def _scrambled(item: Measurement) -> bool:
    """Whether experts were chosen by scores read from wrong places, so that no two tokens of a prompt are alike.

    vLLM 0.23 takes rows of scores for packed, which the compiler pads to a multiple of 16 (vLLM issue 56900): 16 tokens
    of Qwen1.5-MoE take 6.45 ms so, and 3.72 ms with packed scores (`calibration/data/h200/start-f`).
    """
    experts = get_model(item.model).moe
    packs = item.flags.get("forced_routing") is not None
    return experts is not None and experts.num_experts % _PADDED > 0 and not packs


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
    if item.kind == "kernels":
        decodes = int(point["batch_size"])
        return StepPoint(decodes=decodes, context_tokens=decodes * (float(point["context_len"]) + _PROFILED_AFTER))
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
