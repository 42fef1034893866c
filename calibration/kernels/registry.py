"""Which kernel families a measured table holds, and which of its rows belong to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from calibration.kernels import attention, collectives, latent
from calibration.kernels.experts import experts_families, split_experts
from calibration.kernels.families import Family
from calibration.kernels.gemm import gemm_families, split_gemm
from calibration.kernels.tables import KernelTable

FamilyParts = list[tuple[Family, KernelTable]]


def families_of(table: KernelTable) -> FamilyParts:
    """The families of a table with their rows; rows of kernels that no formula describes are in none.

    Raises:
        InputError: a column is missing or holds a bad value.
    """
    reader = _BY_OPERATOR.get(table.operator)
    return reader(table) if reader else []


def _gemm(table: KernelTable) -> FamilyParts:
    known = gemm_families()
    return [(known[name], part) for name, part in split_gemm(table).items() if name in known]


def _experts(table: KernelTable) -> FamilyParts:
    known = experts_families()
    return [(known[name], part) for name, part in split_experts(table).items() if name in known]


def _by_source(families: Mapping[str, Family]) -> Callable[[KernelTable], FamilyParts]:
    def read(table: KernelTable) -> FamilyParts:
        source = table.text("kernel_source")
        return [(family, table.where(source == name)) for name, family in families.items() if (source == name).any()]

    return read


def _library(table: KernelTable) -> FamilyParts:
    switched = table.accelerator.name not in {"a100-80gb", "a100-40gb"}
    return [(collectives.SWITCHED_LIBRARY if switched else collectives.LIBRARY, table)]


def _whole(*families: Family) -> Callable[[KernelTable], FamilyParts]:
    def read(table: KernelTable) -> FamilyParts:
        return [(family, table.where(np.arange(len(table)))) for family in families]

    return read


_BY_OPERATOR: dict[str, Callable[[KernelTable], FamilyParts]] = {
    "gemm": _gemm,
    "moe": _experts,
    "generation_attention": _by_source(attention.GENERATION),
    "context_attention": _by_source(attention.CONTEXT),
    "generation_mla": _whole(latent.TRITON_GENERATION),
    "context_mla": _whole(latent.AMPERE_CONTEXT),
    "mla_generation_module": _whole(latent.GENERATION_MODULE),
    "mla_context_module": _whole(latent.CONTEXT_MODULE),
    "nccl": _library,
    "custom_allreduce": _whole(collectives.PEER),
    "wideep_deepep_ll": _whole(collectives.LL_DISPATCH, collectives.LL_COMBINE),
    "wideep_deepep_normal": _whole(collectives.HT_DISPATCH, collectives.HT_COMBINE),
}
