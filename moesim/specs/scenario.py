"""The single input of every engine: what runs where, how, under which load, with which constants and seed."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

import msgspec

from moesim.errors import InputError
from moesim.specs.deployment import Deployment, check_deployment
from moesim.specs.hardware import Cluster
from moesim.specs.model import Model
from moesim.specs.parameters import ParameterSet
from moesim.specs.routing import UNIFORM, Routing
from moesim.specs.workload import Workload, check_workload

DenoisingCode = Literal["moesim", "reference"]
"""Programs that denoise (`moesim.costs.denoising`): this project's engine, and the models' published code."""


class DiffusionRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a masked-diffusion model decodes.

    `steps` denoising forwards are spread evenly over `generation_len / block_len` blocks. A `cfg_scale`
    above 0 doubles the batch. `cache`: none (every position recomputed), prefix (positions before the block
    are cached) or dual (only the block is recomputed). `expert_execution`: loop (one Python call an expert)
    or grouped (one grouped GEMM). `code`: the program.
    """

    generation_len: int
    steps: int
    block_len: int
    cfg_scale: float = 0.0
    cache: str = "none"
    expert_execution: str = "grouped"
    code: DenoisingCode = "moesim"


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a prediction depends on. Two equal scenarios give the same bytes out."""

    model: Model
    cluster: Cluster
    deployment: Deployment
    workload: Workload
    parameters: ParameterSet
    routing: Routing = UNIFORM
    diffusion: DiffusionRun | None = None
    seed: int = 0

    def digest(self) -> str:
        """sha256 of the canonical JSON: the identity that results, caches and sweeps carry."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()


def check_scenario(scenario: Scenario) -> Scenario:
    """Refuse scenarios that cannot run; returns it unchanged. Raises InputError."""
    check_workload(scenario.workload)
    check_deployment(scenario.deployment, scenario.model, scenario.cluster)
    counts, moe = scenario.routing.counts, scenario.model.moe
    if counts and moe is not None and len(counts[0]) != moe.num_experts:
        raise InputError(
            f"routing {scenario.routing.source}: has {len(counts[0])} experts a layer, "
            f"{scenario.model.name} has {moe.num_experts}"
        )
    if scenario.model.is_diffusion and scenario.diffusion is not None:
        _check_diffusion(scenario.diffusion)
    return scenario


def _check_diffusion(run: DiffusionRun) -> None:
    for field in ("generation_len", "steps", "block_len"):
        if getattr(run, field) < 1:
            raise InputError(f"{field}: {getattr(run, field)} is out of range, must be at least 1")
    if run.generation_len % run.block_len:
        raise InputError(f"block_len: {run.block_len} does not divide generation_len = {run.generation_len}")
    blocks = run.generation_len // run.block_len
    if run.steps % blocks:
        raise InputError(f"steps: {run.steps} is no multiple of the {blocks} blocks (generation_len / block_len)")
    if run.cfg_scale < 0:
        raise InputError(f"cfg_scale: {run.cfg_scale} is out of range, must be 0 or more")
    if run.cache not in ("none", "prefix", "dual"):
        raise InputError(f"cache: unknown {run.cache!r}; known: none, prefix, dual")
    if run.expert_execution not in ("loop", "grouped"):
        raise InputError(f"expert_execution: unknown {run.expert_execution!r}; known: grouped, loop")
    if run.code not in get_args(DenoisingCode):
        raise InputError(f"engine_version: unknown {run.code!r}; known: {', '.join(get_args(DenoisingCode))}")
