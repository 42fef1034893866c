"""What a user says about expert placement, as part of a deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from moesim.errors import InputError
from moesim.placement.exchange import read_map, read_vllm_flags
from moesim.specs.deployment import Deployment, Eplb
from moesim.specs.model import Model


@dataclass(frozen=True, slots=True)
class PlacementWords:
    """`redundant_experts` (None: as the map has, else 0), a map file, and balancing at run time."""

    redundant_experts: int | None
    placement: str | None
    enable_eplb: bool
    eplb: Eplb


def place_experts(deployment: Deployment, model: Model, words: PlacementWords) -> Deployment:
    """The deployment with its redundant experts, map and balancing.

    Raises:
        InputError: a map that does not fit the model or the ranks, or a count that contradicts it.
    """
    deployment = msgspec.structs.replace(
        deployment,
        redundant_experts=words.redundant_experts or 0,
        eplb=words.eplb if words.enable_eplb else None,
    )
    if words.placement is None:
        return deployment
    path = Path(words.placement)
    if path.suffix in (".txt", ".sh"):
        return _as_flags(deployment, path)
    moe = model.moe
    if moe is None or deployment.expert_parallel_size == 1:
        raise InputError(f"placement: {words.placement} needs a model with experts and expert parallelism (ep above 1)")
    rows = read_map(path, moe.num_experts, deployment.expert_parallel_size, None)
    if len(rows) not in (1, model.num_moe_layers, model.num_layers):
        raise InputError(
            f"placement: {words.placement} has {len(rows)} layers, {model.name} has {model.num_moe_layers} with "
            f"experts ({model.num_layers} in all)"
        )
    if len(rows) == model.num_layers:
        rows = rows[model.num_dense_layers :]
    extra = rows.shape[1] - moe.num_experts
    if words.redundant_experts not in (None, extra):
        raise InputError(f"redundant_experts: {words.redundant_experts}, but {words.placement} holds {extra}")
    return msgspec.structs.replace(
        deployment, redundant_experts=extra, placement=tuple(tuple(np.asarray(row).tolist()) for row in rows)
    )


def _as_flags(deployment: Deployment, path: Path) -> Deployment:
    """The deployment with what a file of vLLM's flags says about experts."""
    try:
        flags = read_vllm_flags(path.read_text(encoding="utf-8"), f"placement: {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"placement: {path} cannot be read ({error})") from None
    return msgspec.structs.replace(
        deployment, redundant_experts=flags.redundant_experts, eplb=flags.eplb, expert_map=flags.expert_map
    )
