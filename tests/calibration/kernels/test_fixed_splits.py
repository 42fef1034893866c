"""Decode kernels with a fixed number of splits: steps where waves and tiles are added, constants found again."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from calibration.kernels.attention import GENERATION
from calibration.kernels.families import Family, error_quantiles, fit_family, out_of_fold
from calibration.kernels.latent import TRITON_GENERATION
from calibration.kernels.registry import families_of
from calibration.kernels.tables import KernelTable, read_table
from tests.calibration.samples import REFERENCE, needs

TABLES = REFERENCE / "kernel_tables"
FLASH4 = GENERATION["vllm_flash_attn_fa4"]
TRITON = TRITON_GENERATION
LENGTHS = [2**power for power in range(1, 15)]


def rows(system: str, batches, lengths, heads, **columns) -> KernelTable:
    """One row for every batch, visible length and number of heads."""
    batch, length, head = np.array(list(product(batches, lengths, heads))).T
    known = {"batch_size": batch, "isl": np.ones_like(batch), "step": length - 1, "num_heads": head}
    known |= {name: np.full(len(batch), value) for name, value in columns.items()}
    path = Path(system) / "vllm" / "decode_perf.parquet"
    return KernelTable(path, system, "vllm", "decode", np.arange(len(batch)), known)


def flash4(batches, lengths, heads=(8,), kv_heads=1, system="h200_sxm") -> KernelTable:
    return rows(system, batches, lengths, heads, num_key_value_heads=kv_heads, head_dim=512, kv_cache_dtype="bfloat16")


def triton(batches, lengths, heads=(16,)) -> KernelTable:
    return rows("a100_sxm", batches, lengths, heads)


def seconds(family: Family, table: KernelTable, **changed: float) -> np.ndarray:
    return family.predict(table, family.constants(changed))


@pytest.mark.parametrize(
    ("family", "table"),
    [
        (FLASH4, flash4([2**power for power in range(12)], LENGTHS, (1, 4, 8))),
        (TRITON, triton([2**power for power in range(11)], LENGTHS, (1, 4, 16, 128))),
    ],
    ids=["FlashAttention-4", "Triton MLA"],
)
def test_constants_are_found_again(family, table):
    truth = {name: value * factor for (name, value), factor in zip(family.start.items(), [0.8, 1.3] * 3, strict=False)}
    table = KernelTable(
        table.path, table.system, table.library, table.operator, table.rows,
        {**table.columns, "latency": 1e3 * seconds(family, table, **truth)},
    )  # fmt: skip
    found = fit_family(family, [table])
    assert found.values == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize(("family", "table"), [(FLASH4, flash4), (TRITON, triton)])
def test_more_sequences_heads_and_tokens_never_take_less(family, table):
    for batch in (1, 16, 100, 512):
        assert np.all(np.diff(seconds(family, table([batch], range(8, 20_000, 7)))) >= 0)
    assert np.all(np.diff(seconds(family, table(range(1, 513), [4096]))) >= 0)
    assert np.all(np.diff(seconds(family, table([64], [4096], range(2, 129)))) >= 0)


def test_splits_without_keys_are_launched_too():
    """132 compute units hold the 32 splits of 4 sequences; of 8 sequences they need two waves, of 64 sixteen."""
    tile = FLASH4.start["decode_tile_s"]
    alone = {"decode_search_s": 1e-15, "decode_combine_block_s": 1e-18}
    four, eight, many = seconds(FLASH4, flash4([4, 8, 64], [64]), **alone)
    assert eight - four == pytest.approx(tile, rel=1e-3)
    assert many - four == pytest.approx(15 * tile, rel=1e-3)
    assert np.ptp(seconds(FLASH4, flash4([8], range(1, 2049)))) == 0


def test_batches_beyond_the_graphs_are_not_split():
    captured, beyond = seconds(FLASH4, flash4([512, 513], [64]))
    assert beyond < captured / 4


def test_the_combine_grid_grows_with_the_square_of_the_batch():
    one = {"decode_start_s": 1e-12, "decode_tile_s": 1e-12, "decode_search_s": 1e-15}
    small, large = seconds(FLASH4, flash4([128, 256], [64]), **one)
    assert large / small == pytest.approx(4, rel=0.01)


def test_latent_blocks_run_in_whole_waves():
    """27 sequences of 4 splits fill 108 compute units once; a 28th adds a wave, 128 heads are eight blocks."""
    sequences = {"mla_reduce_s": 1e-15, "host_floor_s": 1e-9}
    one, two = seconds(TRITON, triton([27, 28], [32_769]), **sequences) - TRITON.held["mla_start_s"]
    assert two == pytest.approx(2 * one, rel=1e-3)
    (wide,) = seconds(TRITON, triton([28], [32_769], (128,)), **sequences) - TRITON.held["mla_start_s"]
    assert wide == pytest.approx(9 * one, rel=1e-3)


def measured(name: str, family: Family) -> KernelTable:
    known = families_of(read_table(TABLES / f"{name}_perf.parquet"))
    return next(part for found, part in known if found.name == family.name)


@pytest.mark.reference
@needs(TABLES)
@pytest.mark.parametrize("system", ["h100_sxm", "h200_sxm"])
def test_flash4_rows_of_shapes_left_out_are_met(system):
    table = measured(f"{system}/vllm-0.24.0/generation_attention", FLASH4)
    median, ninetieth = error_quantiles(out_of_fold(FLASH4, table), table.seconds())
    assert median <= 0.06
    assert ninetieth <= 0.15


@pytest.mark.reference
@needs(TABLES)
@pytest.mark.parametrize("system", ["h100_sxm", "h200_sxm"])
def test_every_flash4_constant_is_identified(system):
    found = fit_family(FLASH4, [measured(f"{system}/vllm-0.24.0/generation_attention", FLASH4)])
    assert not [item.name for item in found.estimates if item.at_bound or item.prior_only]
    assert 0.5 < found.values["attention_hbm_efficiency"] < 1


@pytest.mark.reference
@needs(TABLES)
def test_flash4_constants_carry_over_to_a_gpu_never_fitted():
    constants = FLASH4.constants(
        fit_family(FLASH4, [measured("h200_sxm/vllm-0.24.0/generation_attention", FLASH4)]).values
    )
    blind = measured("h100_sxm/vllm-0.24.0/generation_attention", FLASH4)
    median, ninetieth = error_quantiles(FLASH4.predict(blind, constants), blind.seconds())
    assert median <= 0.08
    assert ninetieth <= 0.25
