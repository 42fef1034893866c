"""A model laid out on a cluster: what each rank holds, and whom it talks to."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.costs.kernels import Rates
from moesim.network.collectives import Group, make_group
from moesim.placement.memory import kv_dtype_bytes, served_dtypes
from moesim.specs.deployment import Deployment
from moesim.specs.dtypes import Dtype, get_dtype
from moesim.specs.hardware import Cluster
from moesim.specs.model import Model
from moesim.specs.parameters import ParameterSet
from moesim.specs.routing import Routing


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything an operator's cost depends on, apart from the batch."""

    model: Model
    deployment: Deployment
    cluster: Cluster
    parameters: ParameterSet
    routing: Routing
    seed: int
    rates: Rates
    attention_dtype: Dtype
    expert_dtype: Dtype
    dense_dtype: Dtype
    embedding_dtype: Dtype
    kv_bytes: float
    tp_group: Group
    dp_group: Group
    ep_group: Group

    @property
    def tp(self) -> int:
        """Tensor-parallel size."""
        return self.deployment.tensor_parallel_size


def make_layout(
    model: Model, deployment: Deployment, cluster: Cluster, parameters: ParameterSet, routing: Routing, seed: int
) -> Layout:
    """Resolve number formats and communication groups (tensor-parallel ranks are neighbours)."""
    dtypes = served_dtypes(model, deployment.quantization)
    tp, lockstep = deployment.tensor_parallel_size, deployment.lockstep_ranks
    return Layout(
        model=model,
        deployment=deployment,
        cluster=cluster,
        parameters=parameters,
        routing=routing,
        seed=seed,
        rates=Rates(cluster.accelerator, parameters),
        attention_dtype=get_dtype(dtypes.attention),
        expert_dtype=get_dtype(dtypes.experts),
        dense_dtype=get_dtype(dtypes.dense),
        embedding_dtype=get_dtype(dtypes.embedding),
        kv_bytes=kv_dtype_bytes(deployment),
        tp_group=make_group(cluster, parameters, tp),
        dp_group=make_group(cluster, parameters, lockstep, stride=tp),
        ep_group=make_group(cluster, parameters, tp * lockstep),
    )
