"""What a user says about expert placement, as part of a deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from moesim.errors import InputError
from moesim.placement.exchange import read_map
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
    moe = model.moe
    if moe is None or deployment.expert_parallel_size == 1:
        raise InputError(f"placement: {words.placement} needs a model with experts and expert parallelism (ep above 1)")
    rows = read_map(Path(words.placement), moe.num_experts, deployment.expert_parallel_size, None)
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
