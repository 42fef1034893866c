"""Formulas of few constants meet the measured tables on shapes that were left out, and on another GPU."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.kernels.collectives import destinations
from calibration.kernels.families import error_quantiles, fit_family, out_of_fold, shape_folds
from calibration.kernels.registry import families_of
from calibration.kernels.tables import KernelTable, read_table
from moesim.errors import InputError
from tests.calibration.samples import REFERENCE, needs

TABLES = REFERENCE / "kernel_tables"
ACCURATE = (
    "a100_sxm/vllm-0.14.0/context_attention",
    "a100_sxm/vllm-0.14.0/generation_attention",
    "a100_sxm/vllm-0.14.0/context_mla",
    "a100_sxm/vllm-0.14.0/generation_mla",
    "a100_sxm/vllm-0.14.0/custom_allreduce",
    "a100_sxm/nccl-2.27.3/nccl",
    "h200_sxm/vllm-0.24.0/context_attention",
    "h200_sxm/vllm-0.24.0/generation_attention",
    "h200_sxm/vllm-0.24.0/mla_context_module",
    "h200_sxm/vllm-0.24.0/mla_generation_module",
    "h200_sxm/vllm-0.24.0/custom_allreduce",
    "h200_sxm/nccl-2.29.2/nccl",
    "h200_sxm/sglang-0.5.12/wideep_deepep_ll",
    "h200_sxm/sglang-0.5.12/wideep_deepep_normal",
)
"""Tables of which 90 % of the rows are met within 25 %."""


def sampled(name: str, rows: int = 3000) -> KernelTable:
    table = read_table(TABLES / f"{name}_perf.parquet")
    return table.where(np.sort(np.random.default_rng(1).permutation(len(table))[:rows]))


def errors_left_out(table: KernelTable) -> tuple[float, float]:
    pairs = [(out_of_fold(family, part), part.seconds(family.measured)) for family, part in families_of(table)]
    return error_quantiles(*(np.concatenate(side) for side in zip(*pairs, strict=True)))


@pytest.mark.reference
@needs(TABLES)
@pytest.mark.parametrize("name", ACCURATE)
def test_rows_of_shapes_left_out_are_met(name):
    median, ninetieth = errors_left_out(sampled(name))
    assert median <= 0.10
    assert ninetieth <= 0.25


@pytest.mark.reference
@needs(TABLES)
def test_host_bound_mla_rows_are_met_but_for_stalls():
    """A fourteenth of these un-graphed rows holds host stalls of up to 3 ms; of the rest 90 % are within 15 %."""
    table = sampled("a100_sxm/vllm-0.14.0/generation_mla")
    (family, part), *_ = families_of(table)
    predicted, measured = out_of_fold(family, part), part.seconds()
    errors = predicted / measured - 1
    assert np.median(np.abs(errors)) <= 0.05
    stalled = errors < -0.25
    assert 0.04 < stalled.mean() < 0.10
    assert np.quantile(np.abs(errors[~stalled]), 0.9) <= 0.15


@pytest.mark.reference
@needs(TABLES)
@pytest.mark.parametrize(
    ("fitted", "blind"),
    [
        ("h200_sxm/vllm-0.24.0/generation_attention", "h100_sxm/vllm-0.24.0/generation_attention"),
        ("h200_sxm/vllm-0.24.0/context_attention", "h100_sxm/vllm-0.24.0/context_attention"),
        ("h200_sxm/vllm-0.24.0/custom_allreduce", "h100_sxm/vllm-0.24.0/custom_allreduce"),
        ("h200_sxm/nccl-2.29.2/nccl", "h100_sxm/nccl-2.29.2/nccl"),
    ],
)
def test_constants_carry_over_to_a_gpu_never_fitted(fitted, blind):
    constants = {
        family.name: family.constants(fit_family(family, [part]).values)
        for family, part in families_of(sampled(fitted))
    }
    pairs = [
        (family.predict(part, constants[family.name]), part.seconds()) for family, part in families_of(sampled(blind))
    ]
    median, ninetieth = error_quantiles(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    assert median <= 0.15
    assert ninetieth <= 0.375


@pytest.mark.reference
@needs(TABLES)
@pytest.mark.parametrize("operator", ["generation_attention", "context_attention"])
def test_fitted_constants_are_physical(operator):
    family, part = families_of(sampled(f"h200_sxm/vllm-0.24.0/{operator}"))[0]
    result = fit_family(family, [part])
    assert not [item.name for item in result.estimates if item.at_bound]
    for name in ("attention_hbm_efficiency", "attention_compute_efficiency"):
        if name in result.values:
            assert 0.5 < result.values[name] < 1


@pytest.mark.reference
@needs(TABLES)
def test_rows_keep_their_identity():
    table = sampled("h200_sxm/nccl-2.29.2/nccl", 5)
    assert table.ids()[0] == f"h200_sxm/nccl-2.29.2/nccl_perf.parquet#{table.rows[0]}"
    assert table.accelerator.name == "h200"


@pytest.mark.reference
@needs(TABLES)
def test_folds_keep_shapes_together():
    table = sampled("h200_sxm/nccl-2.29.2/nccl")
    folds = shape_folds(table, ("op_name", "num_gpus", "message_size"))
    shapes = list(zip(table.text("op_name"), table.number("num_gpus"), table.number("message_size"), strict=True))
    by_shape: dict[tuple[str, float, float], set[int]] = {}
    for shape, fold in zip(shapes, folds.tolist(), strict=True):
        by_shape.setdefault(shape, set()).add(fold)
    assert all(len(found) == 1 for found in by_shape.values())
    assert set(folds.tolist()) == {0, 1, 2, 3, 4}


def test_destinations_of_distinct_experts():
    assert destinations(1, 256, 8) == pytest.approx(1)
    assert destinations(256, 256, 8) == 8
    rng = np.random.default_rng(0)
    drawn = [len({expert // 32 for expert in rng.permutation(256)[:8]}) for _ in range(4000)]
    assert destinations(8, 256, 8) == pytest.approx(np.mean(drawn), rel=0.01)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all" * 10])
def test_bad_files_are_named(tmp_path, content):
    path = tmp_path / "nccl_perf.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"nccl_perf\.parquet"):
        read_table(path)


def test_bad_values_are_named(tmp_path):
    columns = {"latency": np.array([0.1, 0.0]), "num_gpus": np.array([2.0, np.nan]), "op_name": np.array(["a", "b"])}
    table = KernelTable(tmp_path / "nccl_perf.parquet", "h200_sxm", "nccl-2", "nccl", np.array([4, 9]), columns)
    with pytest.raises(InputError, match="row 9: latency is 0"):
        table.seconds()
    with pytest.raises(InputError, match="row 9: num_gpus is nan"):
        table.number("num_gpus")
    with pytest.raises(InputError, match="'op_name' holds text"):
        table.number("op_name")
    with pytest.raises(InputError, match="no column 'tokens'"):
        table.number("tokens")
