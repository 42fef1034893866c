"""Does it fit, and if not, how many accelerators would."""

from __future__ import annotations

import msgspec

from moesim.errors import InputError
from moesim.placement.memory import MemoryPlan, plan_memory
from moesim.specs.deployment import Deployment, check_deployment
from moesim.specs.hardware import Cluster, make_cluster
from moesim.specs.model import Model


def require_fit(model: Model, deployment: Deployment, cluster: Cluster, sequence_tokens: int) -> MemoryPlan:
    """The memory plan, if one sequence of `sequence_tokens` fits beside the weights.

    Raises:
        InputError: it does not fit; the message says what is needed and the smallest count that fits.
    """
    plan = plan_memory(model, deployment, cluster.accelerator)
    if fits(plan, sequence_tokens):
        return plan
    needed = plan.weights_bytes + plan.activation_bytes + plan.runtime_bytes
    needed += sequence_tokens * plan.kv_bytes_per_token
    budget = plan.visible_bytes * deployment.gpu_memory_utilization
    raise InputError(
        f"{model.name} does not fit: {deployment.num_ranks} x {cluster.accelerator.name} at tp "
        f"{deployment.tensor_parallel_size}, ep {deployment.expert_parallel_size} need {needed / 1e9:.1f} GB each, "
        f"{budget / 1e9:.1f} GB are usable; {_smallest_hint(model, deployment, cluster, sequence_tokens)}"
    )


def fits(plan: MemoryPlan, sequence_tokens: int) -> bool:
    """True when the KV pool holds at least one sequence of `sequence_tokens`."""
    return plan.kv_pool_bytes > 0 and plan.kv_tokens >= sequence_tokens


def _smallest_hint(model: Model, deployment: Deployment, cluster: Cluster, sequence_tokens: int) -> str:
    count = smallest_tensor_parallel(model, deployment, cluster, sequence_tokens)
    if count is None:
        return "no tensor-parallel size up to 512 fits"
    return f"the smallest tensor-parallel count that fits is {count} x {cluster.accelerator.name}"


def smallest_tensor_parallel(
    model: Model, deployment: Deployment, cluster: Cluster, sequence_tokens: int
) -> int | None:
    """The fewest accelerators on which the model fits with tensor parallelism alone (None: none up to 512)."""
    for size in range(1, 513):
        trial = msgspec.structs.replace(
            deployment,
            tensor_parallel_size=size,
            data_parallel_size=1,
            expert_parallel_size=1,
            pipeline_parallel_size=1,
        )
        try:
            per_node = cluster.accelerator.accelerators_per_node
            if size > per_node and size % per_node:
                continue
            check_deployment(trial, model, make_cluster(cluster.accelerator, size))
        except InputError:
            continue
        if fits(plan_memory(model, trial, cluster.accelerator), sequence_tokens):
            return size
    return None
