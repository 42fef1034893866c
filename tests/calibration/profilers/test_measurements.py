"""Profiles as measurements of the one schema."""

import pytest

from calibration.profilers import read_profile
from calibration.profilers.measurements import to_measurements
from calibration.schema_files import load_measurements, save_measurements
from tests.calibration.profilers.databases import make_nsys
from tests.calibration.samples import PROFILERS, needs


@pytest.mark.reference
@needs(PROFILERS)
def test_counters_and_steps_of_saved_files(tmp_path):
    copy = PROFILERS / "rocprofiler_compute_mi300x" / "vcopy_rocpd_pmc_perf_long.csv"
    (item,) = to_measurements(read_profile(copy))
    assert (item.kind, item.hardware.accelerator, item.values["write_bytes"]) == ("counters", "MI300X_A1", 8388608)
    trace = PROFILERS / "tracelens" / "vllm_prefilldecode_piecewise_graph_execution.json.gz"
    *kernels, step = to_measurements(read_profile(trace))
    assert {kernel.kind for kernel in kernels} == {"kernels"}
    assert (step.kind, step.point["tokens"], step.point["context"]["query"]) == ("mixed_step", 8192, 8155)
    assert step.values["kernel_s"] == pytest.approx(sum(kernel.values["total_s"] for kernel in kernels))
    path = tmp_path / "m.csv"
    save_measurements(path, [item, *kernels, step])
    assert load_measurements(path) == [item, *kernels, step]


def test_a_decode_and_prefill_step_of_nsys(tmp_path):
    *_, step = to_measurements(read_profile(make_nsys(tmp_path / "run.sqlite")))
    assert (step.kind, step.values["kernels"]) == ("mixed_step", 2)
    assert step.values["device_s"] == pytest.approx(8.5e-6)
