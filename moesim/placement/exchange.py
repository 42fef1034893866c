"""Plans in and out of the engines' own formats."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, nearest
from moesim.placement.baselines import linear, round_robin
from moesim.placement.replicas import check_map
from moesim.specs.deployment import Eplb
from moesim.specs.loading import convert

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
FORMATS = ("sglang", "sglang_counts", "vllm", "json")
_VLLM_WINDOW = 1000
_VLLM_INTERVAL = 3000
"""vLLM's defaults of `window_size` and `step_interval` (EPLBConfig)."""


def read_map(path: Path, num_experts: int, num_ranks: int, num_layers: int | None) -> IntArray:
    """A map [layers, slots] from JSON with `physical_to_logical_map` (ours, SGLang's), or a bare list of lists.

    One row serves all layers; `num_layers` None takes as many as there are.

    Raises:
        InputError: unreadable, of other sizes, or a map that no engine could load.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"map: {path} cannot be read ({error})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"map: {path} is not valid JSON: {error}") from None
    if isinstance(document, dict):
        named = cast("dict[str, Any]", document)
        if "physical_to_logical_map" not in named:
            raise InputError(
                f"map: {path} has no key 'physical_to_logical_map'; {nearest('physical_to_logical_map', named)}"
            )
        document = named["physical_to_logical_map"]
    try:
        physical = np.array(document)
    except ValueError:
        raise InputError(f"map: {path} has rows of different lengths") from None
    if physical.ndim == 1:
        physical = physical[None, :]
    if physical.ndim != 2 or physical.dtype.kind not in "iu" or not physical.size:
        raise InputError(f"map: {path} must hold whole numbers [layers][slots], it has shape {physical.shape}")
    if len(physical) == 1 and num_layers is not None:
        physical = np.repeat(physical, num_layers, axis=0)
    if num_layers is not None and len(physical) != num_layers:
        raise InputError(f"map: {path} has {len(physical)} layers, the counts have {num_layers}")
    return check_map(physical.astype(np.int64), num_experts, num_ranks, f"map: {path}")


def export_plan(physical: IntArray, loads: FloatArray, num_ranks: int, form: str) -> str:
    """The plan as text: sglang (`--init-expert-location`), sglang_counts (the same file with loads, from which
    SGLang plans itself), vllm (flags), json (map only).

    Raises:
        InputError: unknown format.
    """
    if form in ("sglang", "json"):
        return json.dumps({"physical_to_logical_map": physical.tolist()})
    if form == "sglang_counts":
        return json.dumps({"logical_count": loads.tolist()})
    if form == "vllm":
        return vllm_flags(physical, loads.shape[1], num_ranks)
    raise InputError(f"format: unknown {form!r}; {nearest(form, FORMATS)}")


@dataclass(frozen=True, slots=True)
class VllmFlags:
    """What vLLM's flags say about experts: how the first map is made, and balancing at run time (None: off)."""

    expert_map: str
    redundant_experts: int
    eplb: Eplb | None


def read_vllm_flags(text: str, where: str) -> VllmFlags:
    """Read `--expert-placement-strategy`, `--enable-eplb` and `--eplb-config` from a command line.

    Both forms of the configuration are known: JSON, and `--eplb-config.step_interval 3000`. Other flags are skipped.

    Raises:
        InputError: values that vLLM would refuse.
    """
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as error:
        raise InputError(f"{where}: is no command line: {error}") from None
    strategy, config = "linear", dict[str, Any]()
    for word, value in zip(words, [*words[1:], ""], strict=True):
        name, _, given = word.partition("=")
        given = given or value
        if name == "--expert-placement-strategy":
            strategy = given
        elif name == "--eplb-config":
            config |= _parse_config(given, where)
        elif name.startswith("--eplb-config."):
            config[name.removeprefix("--eplb-config.")] = _literal(given)
    if strategy not in ("linear", "round_robin"):
        raise InputError(f"{where}: --expert-placement-strategy {strategy!r} is unknown; known: linear, round_robin")
    redundant = config.pop("num_redundant_experts", 0)
    known = {name: config[name] for name in ("window_size", "step_interval", "use_async") if name in config}
    if not isinstance(redundant, int) or redundant < 0:
        raise InputError(f"{where}: num_redundant_experts is {redundant!r}, must be a whole number of 0 or more")
    return VllmFlags(strategy, redundant, convert(known, Eplb, where) if "--enable-eplb" in words else None)


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parse_config(text: str, where: str) -> dict[str, Any]:
    config = _literal(text)
    if not isinstance(config, dict):
        raise InputError(f"{where}: --eplb-config {text!r} is no JSON object")
    return cast("dict[str, Any]", config)


def vllm_flags(physical: IntArray, num_experts: int, num_ranks: int) -> str:
    """vLLM's flags that come nearest: it makes its own maps from loads it counts, so only the sizes can be given.

    A plan that is vLLM's own linear or round-robin map is named as such.
    """
    slots = physical.shape[1]
    if slots == num_experts:
        for name, make in (("linear", linear), ("round_robin", round_robin)):
            if np.array_equal(physical, np.tile(make(num_experts, slots, num_ranks), (len(physical), 1))):
                return f"--enable-expert-parallel --expert-placement-strategy {name}"
    config = {
        "window_size": _VLLM_WINDOW,
        "step_interval": _VLLM_INTERVAL,
        "num_redundant_experts": slots - num_experts,
    }
    return f"--enable-expert-parallel --enable-eplb --eplb-config '{json.dumps(config)}'"
