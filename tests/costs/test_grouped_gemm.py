"""Fused expert kernels obey physics: distinct experts are read, tiles cover rows, foreign rows cost what they cost."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from moesim.costs.grouped_gemm import KERNELS, ExpertLoad, ExpertShape, Tiling, fused_experts, tiling
from moesim.specs.catalog import get_hardware
from moesim.specs.dtypes import Dtype, get_dtype
from moesim.specs.parameters import list_parameter_sets

H200 = get_hardware("h200")
PARAMETERS = list_parameter_sets()["prior-nvidia"]
TOKENS = np.unique(np.round(np.geomspace(1, 16384, 40)))
FORMATS = {
    "bf16": "bfloat16",
    "fp8": "fp8",
    "block": "fp8_block",
    "cutlass": "fp8",
    "cutlass_block": "fp8_block",
    "int4": "int4",
    "mxfp4": "mxfp4",
    "mxfp4_marlin": "mxfp4",
    "nvfp4": "nvfp4",
}
QWEN = ExpertShape(2048.0, 768.0)


def balanced(tokens, experts, top_k, kernel, ranks=1):
    """Rows spread as evenly as whole rows allow over the experts of one rank."""
    local = experts // ranks
    slots = np.asarray(tokens, dtype=float) * top_k
    rows = slots / ranks
    tile = tiling(kernel.block_rule, np.asarray(tokens, dtype=float), slots, experts, local)
    each, more = np.divmod(rows, local)
    tiles = np.ceil(each / tile.rows) * (local - more) + np.ceil((each + 1) / tile.rows) * more
    return ExpertLoad(
        np.asarray(tokens, float), slots, np.minimum(rows, local), rows, tiles, tile, float(experts), ranks > 1
    )


def seconds(name, load, shape=QWEN, accelerator=H200, **words):
    dtype: Dtype = get_dtype(FORMATS[name])
    return fused_experts(load, shape, dtype, accelerator, PARAMETERS, KERNELS[name], **words).seconds


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_never_faster_than_reading_the_touched_experts(name):
    dtype = get_dtype(FORMATS[name])
    load = balanced(TOKENS, 128, 8, KERNELS[name])
    parts = fused_experts(load, QWEN, dtype, H200, PARAMETERS, KERNELS[name])
    weights = load.distinct * 3 * 2048 * 768 * dtype.bytes_per_element
    assert np.all(parts.seconds > weights / H200.hbm_bandwidth_bytes_per_s)
    assert np.all(parts.hbm_bytes >= weights)
    assert np.allclose(parts.flops, load.rows * 6 * 2048 * 768)
    assert np.allclose(parts.memory_s + parts.compute_s + parts.fixed_s, parts.seconds)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_grows_with_tokens_on_the_whole(name):
    times = seconds(name, balanced(TOKENS, 128, 8, KERNELS[name]))
    assert np.all(times > 0.7 * np.maximum.accumulate(times))
    assert times[-1] > 10 * times[0]


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_more_bandwidth_never_costs_time(name):
    wider = msgspec.structs.replace(H200, hbm_bandwidth_bytes_per_s=2 * H200.hbm_bandwidth_bytes_per_s)
    load = balanced(TOKENS, 128, 8, KERNELS[name])
    assert np.all(seconds(name, load, accelerator=wider) <= seconds(name, load) * (1 + 1e-12))


@pytest.mark.parametrize("rule", ["tokens", "experts", "mean", "mean64", "full", "marlin", "rows", "scaled"])
def test_tiles_hold_all_rows(rule):
    kernel = dataclasses.replace(KERNELS["bf16"], block_rule=rule)
    load = balanced(TOKENS, 128, 8, kernel)
    assert np.all(load.tiles * load.tiling.rows >= load.rows)
    assert np.all(load.tiles >= load.distinct - 1e-9)
    assert set(load.tiling.rows.tolist()) <= {8.0, 16.0, 32.0, 48.0, 64.0, 128.0}


def test_decode_goes_from_top_k_experts_to_all_of_them():
    """In between, time follows the distinct experts, which double with the tokens."""
    shape = ExpertShape(4096.0, 14336.0)
    load = balanced(np.array([1.0, 2.0, 4.0, 8.0, 16.0]), 8, 2, KERNELS["bf16"])
    times = seconds("bf16", load, shape)
    assert load.distinct.tolist() == [2, 4, 8, 8, 8]
    assert times[1] / times[0] == pytest.approx(2, rel=0.1)
    assert times[2] / times[1] == pytest.approx(2, rel=0.1)
    assert times[4] / times[2] < 1.05


def test_slots_of_other_ranks_cost_triton_time_but_not_flashinfer():
    for name, pays in (("bf16", True), ("cutlass_block", False)):
        load = balanced(np.array([4096.0]), 128, 8, KERNELS[name], ranks=8)
        alone = dataclasses.replace(load, slots=load.rows)
        assert (seconds(name, load)[0] > 1.05 * seconds(name, alone)[0]) == pays


def test_small_weights_are_warm_only_when_calls_repeat():
    load = balanced(np.array([1.0]), 128, 1, KERNELS["bf16"])
    cold, warm = seconds("bf16", load), seconds("bf16", load, warm=True)
    assert warm[0] < cold[0]
    many = balanced(np.array([64.0]), 128, 8, KERNELS["bf16"])
    assert seconds("bf16", many, warm=True)[0] == pytest.approx(seconds("bf16", many)[0], rel=0.01)


def test_few_slots_are_not_sorted():
    load = balanced(np.array([4.0]), 128, 8, KERNELS["bf16"])
    sparse = dataclasses.replace(load, global_experts=128.0 + 1e-3)
    assert seconds("bf16", load)[0] - seconds("bf16", sparse)[0] == pytest.approx(0.0, abs=1e-12)
    dense = dataclasses.replace(load, global_experts=127.0)
    assert seconds("bf16", dense)[0] - seconds("bf16", load)[0] == pytest.approx(PARAMETERS["moe_sort_s"])


def bytes_of(load, shape):
    return fused_experts(load, shape, get_dtype("bfloat16"), H200, PARAMETERS, KERNELS["bf16"]).hbm_bytes[0]


def test_wide_experts_are_fetched_once_a_row_block_unless_blocks_walk_together():
    """Four experts of Mixtral's on a rank, 64 rows each: vLLM's rule gives them blocks of 64, in no groups.

    With 128 rows there are two blocks an expert, and 224 column blocks are more than the chip works on at a time: the
    first product's weights come twice, the second's (32 column blocks) once.
    """
    mixtral = ExpertShape(4096.0, 14336.0)
    one, two = (balanced(np.array([tokens]), 8, 2, KERNELS["bf16"], ranks=2) for tokens in (256.0, 512.0))
    assert (one.tiles[0], two.tiles[0], two.tiling.groups[0]) == (4, 8, 1)
    first_product = 4 * 2 * 4096 * 14336 * 2
    rows = two.rows[0] - one.rows[0]
    activations = rows * 2 * (4096 + 2 * 14336 + 14336 + 4096) + 2 * rows * 2 * (3 * 14336 + 2 * 4096)
    grown = bytes_of(two, mixtral) - bytes_of(one, mixtral)
    assert grown == pytest.approx(first_product + activations, rel=0.03)
    together = dataclasses.replace(two, tiling=dataclasses.replace(two.tiling, groups=np.array([16.0])))
    assert bytes_of(two, mixtral) - bytes_of(together, mixtral) == pytest.approx(first_product, rel=0.01)


def test_experts_that_fit_in_the_cache_are_fetched_once():
    """Qwen3's first product is 6 MB an expert: its second row block finds it in the cache."""
    load = balanced(np.array([1024.0]), 8, 8, KERNELS["bf16"])
    assert load.tiles[0] == 8 * load.distinct[0]
    apart = dataclasses.replace(load, tiling=Tiling(load.tiling.rows, load.tiling.columns, np.array([1.0])))
    together = dataclasses.replace(load, tiling=Tiling(load.tiling.rows, load.tiling.columns, np.array([8.0])))
    assert bytes_of(apart, QWEN) < 1.05 * bytes_of(together, QWEN)


def test_expert_parallelism_makes_the_blocks_of_marlin_and_gpt_oss_kernels_larger():
    """They divide the choices of all tokens by the experts of the rank: 128 tokens, 8 of 384 experts, 12 on a rank."""
    whole, split = (tiling("marlin", np.array([128.0]), np.array([1024.0]), 384, local).rows[0] for local in (384, 12))
    assert (whole, split) == (8, 64)
    whole, split = (tiling("rows", np.array([128.0]), np.array([512.0]), 128, local).rows[0] for local in (128, 8))
    assert (whole, split) == (16, 64)


def test_mapping_experts_to_a_rank_takes_gpt_oss_kernels_longer():
    load = balanced(np.array([16.0]), 128, 4, KERNELS["mxfp4"])
    apart = seconds("mxfp4", dataclasses.replace(load, split=True)) - seconds("mxfp4", load)
    assert apart[0] == pytest.approx(PARAMETERS["moe_map_s"])
