"""Dense and grouped products meet the measured tables on weight shapes left out, and on a GPU never fitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.kernels.experts import experts_families, predict_experts, split_experts
from calibration.kernels.families import error_quantiles, fit_family, out_of_fold
from calibration.kernels.gemm import gemm_families, predict_gemm, split_gemm
from calibration.kernels.tables import KernelTable, read_table
from moesim.errors import InputError
from moesim.specs.parameters import PARAMETER_NAMES, list_parameter_sets
from tests.calibration.samples import REFERENCE, needs

TABLES = REFERENCE / "kernel_tables"
CONSTANTS = list_parameter_sets()["prior-nvidia"]


def sampled(name: str, rows: int = 2500) -> KernelTable:
    table = read_table(TABLES / f"{name}_perf.parquet")
    return table.where(np.sort(np.random.default_rng(4).permutation(len(table))[:rows]))


def left_out(parts, families) -> tuple[float, float]:
    pairs = [(out_of_fold(families[name], rows, sample=1500), rows.seconds()) for name, rows in parts.items()]
    return error_quantiles(*(np.concatenate(side) for side in zip(*pairs, strict=True)))


@pytest.mark.reference
@needs(TABLES)
@pytest.mark.parametrize(
    ("name", "limit"),
    [("a100_sxm/vllm-0.14.0/gemm", 0.07), ("h100_sxm/vllm-0.24.0/gemm", 0.06), ("h200_sxm/vllm-0.24.0/gemm", 0.06)],
)
def test_dense_products_of_shapes_left_out(name, limit):
    median, ninetieth = left_out(split_gemm(sampled(name)), gemm_families())
    assert median <= limit
    assert ninetieth <= 0.20


@pytest.mark.reference
@needs(TABLES)
@pytest.mark.parametrize("name", ["a100_sxm/vllm-0.14.0/moe", "h200_sxm/vllm-0.24.0/moe", "h200_sxm/vllm-0.22.0/moe"])
def test_experts_of_shapes_left_out(name):
    median, ninetieth = left_out(split_experts(sampled(name), least=200), experts_families())
    assert median <= 0.10
    assert ninetieth <= 0.25


@pytest.mark.reference
@needs(TABLES)
def test_hopper_constants_predict_a_hopper_never_fitted():
    constants = {
        name: gemm_families()[name].constants(fit_family(gemm_families()[name], [rows], 1500).values)
        for name, rows in split_gemm(sampled("h200_sxm/vllm-0.24.0/gemm", 6000)).items()
    }
    blind = split_gemm(sampled("h100_sxm/vllm-0.24.0/gemm", 6000))
    pairs = [(predict_gemm(rows, constants[name]), rows.seconds()) for name, rows in blind.items()]
    median, ninetieth = error_quantiles(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    assert median <= 0.09
    assert ninetieth <= 0.30


def test_fits_move_only_known_constants_and_start_inside_their_bounds():
    for family in (*gemm_families().values(), *experts_families().values()):
        for name, value in {**family.start, **family.fixed}.items():
            assert name in PARAMETER_NAMES
            low, high = family.bounds.get(name, (0.0, np.inf))
            assert low <= value <= high


def test_what_fits_leave_alone_is_what_the_priors_say():
    for family in (*gemm_families().values(), *experts_families().values()):
        for name, value in family.fixed.items():
            assert value == pytest.approx(CONSTANTS[name])


GEMM_ROW = {"gemm_dtype": ["bfloat16"], "m": [8], "n": [4096], "k": [4096], "latency": [0.01]}
MOE_ROW = {
    "kernel_source": ["vllm_unquantizedfusedmoe_triton_tritonexperts"],
    "moe_dtype": ["bfloat16"],
    "num_tokens": [8],
    "hidden_size": [2048],
    "inter_size": [768],
    "topk": [8],
    "num_experts": [128],
    "moe_tp_size": [1],
    "moe_ep_size": [1],
    "distribution": ["balanced"],
    "latency": [0.1],
}


def written(folder: Path, operator: str, columns) -> KernelTable:
    import pandas as pd

    path = folder / "h200_sxm" / "vllm-0.24.0" / f"{operator}_perf.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(path)
    return read_table(path)


def test_one_good_row_is_predicted(tmp_path):
    assert 3e-6 < predict_gemm(written(tmp_path, "gemm", GEMM_ROW), CONSTANTS)[0] < 3e-5
    assert 5e-5 < predict_experts(written(tmp_path, "moe", MOE_ROW), CONSTANTS)[0] < 5e-4


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("m", [0], "m is 0"),
        ("m", [1.5], "m is 1.5"),
        ("n", [-4096], "n is -4096"),
        ("k", [float("inf")], "k is inf"),
        ("k", ["many"], "'k' holds text"),
        ("gemm_dtype", ["fp9"], "'fp9'"),
        ("m", None, "no column 'm'"),
    ],
)
def test_bad_dense_rows_are_refused_by_column(tmp_path, column, value, words):
    columns = {**GEMM_ROW, column: value} if value else {k: v for k, v in GEMM_ROW.items() if k != column}
    with pytest.raises(InputError, match=r"gemm_perf\.parquet") as caught:
        predict_gemm(written(tmp_path, "gemm", columns), CONSTANTS)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("num_tokens", [0], "num_tokens is 0"),
        ("num_tokens", [10**12], "num_tokens is 1e+12"),
        ("topk", [129], "topk is 129"),
        ("moe_ep_size", [3], "moe_ep_size is 3"),
        ("moe_tp_size", [float("nan")], "moe_tp_size is nan"),
        ("distribution", ["power_law_1.0"], "power_law_1.0"),
        ("distribution", ["uniform"], "'uniform'"),
        ("kernel_source", ["sglang"], "'sglang'"),
        ("moe_dtype", ["int4_wo"], "'int4_wo'"),
        ("hidden_size", None, "no column 'hidden_size'"),
    ],
)
def test_bad_expert_rows_are_refused_by_column(tmp_path, column, value, words):
    columns = {**MOE_ROW, column: value} if value else {k: v for k, v in MOE_ROW.items() if k != column}
    with pytest.raises(InputError, match=r"moe_perf\.parquet") as caught:
        predict_experts(written(tmp_path, "moe", columns), CONSTANTS)
    assert words in str(caught.value)
