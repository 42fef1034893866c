"""Dense products obey physics: conservation, limits, monotonicity; tiles cover the work."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from moesim.costs.gemm import dense_gemm, fp8_tile, gemm_family, host_floor_s, smooth_maximum
from moesim.specs.catalog import get_hardware
from moesim.specs.dtypes import DTYPES, get_dtype
from moesim.specs.parameters import list_parameter_sets

H200 = get_hardware("h200")
PARAMETERS = list_parameter_sets()["prior-nvidia"]
ROWS = np.unique(np.round(np.geomspace(1, 32768, 60)))
SHAPES = [(4096.0, 4096.0), (2048.0, 768.0), (7168.0, 24576.0), (512.0, 151936.0)]


def seconds(rows, inner, columns, dtype="bfloat16", accelerator=H200):
    return dense_gemm(rows, inner, columns, get_dtype(dtype), accelerator, PARAMETERS).seconds


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize(("inner", "columns"), SHAPES)
def test_never_faster_than_the_data_sheet(inner, columns, dtype):
    stored = get_dtype(dtype)
    parts = dense_gemm(ROWS, inner, columns, stored, H200, PARAMETERS)
    weights = inner * columns * stored.bytes_per_element
    peak = H200.peak_flops_per_s.get(stored.compute, H200.peak_flops_per_s["bf16"])
    assert np.all(parts.seconds > weights / H200.hbm_bandwidth_bytes_per_s)
    assert np.all(parts.seconds > 2 * ROWS * inner * columns / peak)
    assert np.all(parts.hbm_bytes >= weights)
    assert np.allclose(parts.flops, 2 * ROWS * inner * columns)
    assert np.allclose(parts.memory_s + parts.compute_s + parts.fixed_s, parts.seconds)


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "fp8_block", "int4"])
@pytest.mark.parametrize(("inner", "columns"), SHAPES)
def test_grows_with_rows_on_the_whole(inner, columns, dtype):
    times = seconds(ROWS, inner, columns, dtype)
    running = np.maximum.accumulate(times)
    assert np.all(times > 0.62 * running)
    assert times[-1] > 3 * times[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "fp8_block"])
def test_more_bandwidth_and_more_arithmetic_never_cost_time(dtype):
    wider = msgspec.structs.replace(H200, hbm_bandwidth_bytes_per_s=2 * H200.hbm_bandwidth_bytes_per_s)
    faster = msgspec.structs.replace(H200, peak_flops_per_s={k: 2 * v for k, v in H200.peak_flops_per_s.items()})
    for inner, columns in SHAPES:
        base = seconds(ROWS, inner, columns, dtype)
        assert np.all(seconds(ROWS, inner, columns, dtype, wider) <= base * (1 + 1e-12))
        assert np.all(seconds(ROWS, inner, columns, dtype, faster) <= base * (1 + 1e-12))


def test_one_row_streams_the_weights_and_many_rows_run_at_the_matrix_rate():
    few = seconds(np.array([1.0]), 16384.0, 16384.0)[0]
    streamed = 2 * 16384.0**2 / (H200.hbm_bandwidth_bytes_per_s * PARAMETERS["gemm_bf16_hbm_efficiency"])
    assert few == pytest.approx(streamed, rel=0.1)
    many = seconds(np.array([16384.0]), 8192.0, 8192.0)[0]
    rate = 2 * 16384.0 * 8192.0**2 / many / H200.peak_flops_per_s["bf16"]
    assert 0.55 < rate < PARAMETERS["gemm_bf16_compute_efficiency"]


def test_a_tile_more_than_the_units_hold_costs_a_wave():
    """64 tiles of 128 x 256 on 64 units are one wave; on 63 units of the same total rate one is left over."""
    exact, short = (msgspec.structs.replace(H200, num_compute_units=units) for units in (64, 63))
    times = [seconds(np.array([8192.0]), 65536.0, 256.0, "fp8_block", device)[0] for device in (exact, short)]
    assert times[1] > 1.04 * times[0]


def test_fp8_tiles_follow_the_library_and_cover_the_rows():
    rows = np.array([1.0, 16.0, 17.0, 64.0, 65.0, 128.0, 129.0, 4096.0])
    narrow, _ = fp8_tile(rows, 1280.0)
    wide, columns = fp8_tile(rows, 1281.0)
    assert narrow.tolist() == [16, 16, 16, 16, 64, 64, 128, 128]
    assert wide.tolist() == [16, 16, 64, 64, 64, 64, 128, 128]
    assert columns.tolist() == [64, 64, 64, 64, 128, 128, 128, 128]


def test_quantising_the_input_costs_time_in_proportion_to_rows_at_least():
    tiny = seconds(np.array([8192.0, 16384.0]), 32.0, 32.0, "fp8")
    assert tiny[1] - tiny[0] >= 8192 * PARAMETERS["quantise_row_s"] * 0.999


def test_the_host_floor_is_no_part_of_the_kernel():
    rows, inner, columns = (
        np.array([1.0, 32.0, 33.0, 64.0]),
        np.full(4, 4096.0),
        np.array([4096.0, 4096.0, 4096.0, 32.0]),
    )
    floor = host_floor_s(rows, inner, columns, PARAMETERS)
    names = ("host_flashinfer_s", "host_deepgemm_s", "host_deepgemm_s", "host_cutlass_s")
    expected = [PARAMETERS[name] for name in names]
    expected[2] += PARAMETERS["host_pad_s"]
    assert floor.tolist() == pytest.approx(expected)
    assert np.all(seconds(rows, inner, columns, "fp8_block") < 0.5 * floor)


def test_inner_and_columns_may_be_arrays():
    inner = np.array([512.0, 4096.0, 4096.0])
    columns = np.array([4096.0, 512.0, 16384.0])
    rows = np.array([1.0, 300.0, 7.0])
    for dtype in ("bfloat16", "fp8", "fp8_block"):
        together = seconds(rows, inner, columns, dtype)
        alone = [seconds(rows[[i]], inner[i], columns[i], dtype)[0] for i in range(3)]
        assert together == pytest.approx(alone)


def test_smooth_maximum_is_between_the_maximum_and_the_sum():
    memory, compute = np.array([1.0, 1.0, 0.0, 5.0]), np.array([1.0, 0.0, 1.0, 3.0])
    left, right = smooth_maximum(memory, compute, 2.0)
    assert np.all(left + right >= np.maximum(memory, compute) - 1e-12)
    assert np.all(left + right <= memory + compute + 1e-12)
    assert (left + right)[3] == pytest.approx(np.hypot(5, 3))


def test_every_format_has_a_family():
    assert {gemm_family(dtype) for dtype in DTYPES.values()} == {"bf16", "fp8", "block"}
