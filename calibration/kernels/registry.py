"""Which family describes which rows of a measured table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from calibration.kernels import attention, collectives, latent
from calibration.kernels.experts import experts_families, split_experts
from calibration.kernels.families import Family
from calibration.kernels.gemm import gemm_families, split_gemm
from calibration.kernels.tables import KernelTable
from moesim.network.collectives import has_reducing_switch

Parts = list[tuple[Family, KernelTable]]


def families_of(table: KernelTable) -> Parts:
    """The families of a table with their rows; rows of kernels that no family describes are left out.

    DeepEP tables hold two measured times a row: their rows come twice, once for each family.
    """
    split = _SPLITS.get(table.operator)
    return split(table) if split else []


def _by_name(
    families: Callable[[], Mapping[str, Family]], split: Callable[[KernelTable], Mapping[str, KernelTable]]
) -> Callable[[KernelTable], Parts]:
    def parts(table: KernelTable) -> Parts:
        known = families()
        return [(known[name], rows) for name, rows in split(table).items()]

    return parts


def _by_source(families: Mapping[str, Family]) -> Callable[[KernelTable], Parts]:
    def parts(table: KernelTable) -> Parts:
        source = table.text("kernel_source")
        found = [(family, source == name) for name, family in families.items()]
        return [(family, table.where(mask)) for family, mask in found if mask.any()]

    return parts


def _whole(*families: Family) -> Callable[[KernelTable], Parts]:
    return lambda table: [(family, table) for family in families]


def _library(table: KernelTable) -> Parts:
    switched = has_reducing_switch(table.accelerator.fabric)
    family = collectives.SWITCHED_LIBRARY if switched else collectives.LIBRARY
    return [(family, table)]


_SPLITS: dict[str, Callable[[KernelTable], Parts]] = {
    "gemm": _by_name(gemm_families, split_gemm),
    "moe": _by_name(experts_families, split_experts),
    "context_attention": _by_source(attention.CONTEXT),
    "generation_attention": _by_source(attention.GENERATION),
    "context_mla": _whole(latent.AMPERE_CONTEXT),
    "generation_mla": _whole(latent.TRITON_GENERATION),
    "mla_context_module": _whole(latent.CONTEXT_MODULE),
    "mla_generation_module": _whole(latent.GENERATION_MODULE),
    "nccl": _library,
    "custom_allreduce": _whole(collectives.PEER),
    "wideep_deepep_ll": _whole(collectives.LL_DISPATCH, collectives.LL_COMBINE),
    "wideep_deepep_normal": _whole(collectives.HT_DISPATCH, collectives.HT_COMBINE),
}
