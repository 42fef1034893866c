"""rocprofv3's CSV and JSON, Nsight Compute and nsys stats CSV: one kernel and one counter table from each.

`ncu_details.csv` is written by hand in Nsight Compute's documented format, with the units that it mixes.
"""

import json
from pathlib import Path

import pytest

from calibration.profilers import read_profile
from calibration.profilers.hbm import measure_traffic
from calibration.profilers.summary import list_devices, list_kernels
from calibration.profilers.units import to_si
from moesim.errors import InputError
from tests.calibration.samples import PROFILERS, needs

NCU = Path(__file__).with_name("ncu_details.csv")
docs = PROFILERS / "rocprofv3_docs"


@pytest.mark.reference
@needs(docs)
def test_rocprof_kernel_trace():
    profile = read_profile(docs / "kernel_trace.csv")
    assert len(profile.kernels) == 9
    first = profile.kernels[0]
    assert first.name == "void addition_kernel<float>(float*, float const*, float const*, int, int)"
    assert (first.start_s, first.duration_s) == (0.0, pytest.approx(12.8e-6))
    assert (first.grid, first.block) == ((16, 1024, 1), (64, 1, 1)), "grids are in work-items: 1024 are 16 groups of 64"
    assert any(line.startswith("counters:") for line in profile.absent)


@pytest.mark.reference
@needs(docs)
def test_every_saved_rocprof_table_is_read():
    for path in sorted(docs.glob("*.csv")):
        profile = read_profile(path)
        assert profile.kernels or profile.counters or profile.totals, path.name
    summary = read_profile(docs / "summary.txt")
    copies = [total for total in summary.totals if total.name == "hsa_queue_create"]
    assert (copies[0].count, copies[0].total_s) == (4, pytest.approx(0.280077621))


@pytest.mark.reference
@needs(PROFILERS)
def test_rocprof_json_of_eight_gpus():
    profile = read_profile(PROFILERS / "tracelens" / "rocprofv3_908_results.json.gz")
    assert len(profile.kernels) == 43915
    assert [device.architecture for device in profile.devices] == ["gfx950"] * 8
    assert {device.compute_units for device in profile.devices} == {256}
    assert sum(kernel.duration_s for kernel in profile.kernels) == pytest.approx(4.44174, rel=1e-5)
    (used,) = list_devices(profile)
    assert used.busy_s <= used.span_s
    assert used.busy_s <= sum(row.total_s for row in list_kernels(profile)) * (1 + 1e-9)


def _rocprof_json(path, *, kernel_id=5, counter=9, value=7.0):
    info = {
        "agent_id": {"handle": 1},
        "queue_id": {"handle": 2},
        "kernel_id": kernel_id,
        "dispatch_id": 3,
        "workgroup_size": {"x": 64, "y": 1, "z": 1},
        "grid_size": {"x": 100, "y": 1, "z": 1},
    }
    collected = {
        "dispatch_data": {"correlation_id": {"internal": 4, "external": 0}, "dispatch_info": info},
        "records": [{"counter_id": {"handle": counter}, "value": value}] * 2,
    }
    process = {
        "agents": [{"id": {"handle": 1}, "type": 2, "node_id": 6, "gfx_target_version": 90402}],
        "counters": [{"id": {"handle": 9}, "name": "SQ_WAVES"}],
        "kernel_symbols": [{"kernel_id": 5, "formatted_kernel_name": "add"}],
        "callback_records": {"counter_collection": [collected]},
        "buffer_records": {"kernel_dispatch": []},
    }
    path.write_text(json.dumps({"rocprofiler-sdk-tool": [process]}))
    return path


def test_rocprof_json_counters_are_summed_over_instances(tmp_path):
    profile = read_profile(_rocprof_json(tmp_path / "c.json"))
    assert [(item.counter, item.value, item.dispatch) for item in profile.counters] == [("SQ_WAVES", 14.0, 3)]
    assert (profile.kernels[0].name, profile.kernels[0].grid, profile.kernels[0].duration_s) == ("add", (2, 1, 1), None)
    assert (profile.devices[0].device, profile.devices[0].architecture) == ("Agent 6", "gfx942")


def test_rocprof_json_kernels_belong_to_the_step_that_launched_them(tmp_path):
    path = _rocprof_json(tmp_path / "c.json")
    document = json.loads(path.read_text())
    (process,) = document["rocprofiler-sdk-tool"]
    info = process["callback_records"]["counter_collection"][0]["dispatch_data"]["dispatch_info"]
    call = {"start_timestamp": 10, "end_timestamp": 12}
    kernel = {"start_timestamp": 100, "end_timestamp": 150, "dispatch_info": info}
    process["buffer_records"] = {
        "kernel_dispatch": [kernel | {"correlation_id": {"internal": number}} for number in (4, 5)],
        "hip_api": [call | {"correlation_id": {"internal": 4}}],
        "marker_api": [{"start_timestamp": 5, "end_timestamp": 20, "correlation_id": {"internal": 9}}],
    }
    process["strings"] = {"marker_api": [{"key": 9, "value": "execute_context_1(8)_generation_0(0)"}]}
    path.write_text(json.dumps(document))
    profile = read_profile(path)
    assert [kernel.step for kernel in profile.kernels] == [0, None]
    assert profile.steps[0].context.query == 8
    assert profile.steps[0].start_s == pytest.approx(-95e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"kernel_id": 6}, "kernel_id 6"), ({"counter": 8}, "counter 8"), ({"value": 1e300}, "SQ_WAVES")],
)
def test_rocprof_json_that_refers_to_nothing(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        read_profile(_rocprof_json(tmp_path / "c.json", **change))


def test_ncu_units_of_every_row_become_si():
    profile = read_profile(NCU)
    copy, tiny = profile.kernels
    assert (copy.duration_s, tiny.duration_s) == (pytest.approx(8e-6), pytest.approx(1.984e-6))
    assert copy.start_s is None
    assert (copy.grid, copy.block, copy.stream) == ((8192, 1, 1), (256, 1, 1), "7")
    found = {(item.dispatch, item.counter): (item.value, item.unit) for item in profile.counters}
    assert found[0, "SM Frequency"] == (pytest.approx(1.59e9), "Hz")
    assert found[0, "DRAM Throughput"] == (62.61, "%")
    assert not any("Cache" in item.counter or "Spilling" in item.counter for item in profile.counters)
    first, second = measure_traffic(profile)
    assert (first.read_bytes, first.write_bytes) == (pytest.approx(8.4e6), pytest.approx(8.38861e6))
    assert first.bytes_per_s == pytest.approx((8.4e6 + 8.38861e6) / 8e-6)
    assert first.occupancy == pytest.approx(0.8125)
    assert second.total_bytes == pytest.approx(1.29e9 * 1.984e-6), "from the throughput where bytes are not recorded"


def test_ncu_raw_page_has_its_units_below_the_header(tmp_path):
    path = tmp_path / "raw.csv"
    path.write_text(
        '"ID","Kernel Name","Block Size","Grid Size","Device","dram__bytes_read.sum","gpu__time_duration.sum"\n'
        '"","","","","","Gbyte","ms"\n"0","k","(1, 1, 1)","(2, 1, 1)","0","1.5","2"\n'
    )
    profile = read_profile(path)
    assert profile.kernels[0].duration_s == pytest.approx(2e-3)
    assert [(item.value, item.unit) for item in profile.counters] == [(1.5e9, "byte"), (pytest.approx(2e-3), "s")]


@pytest.mark.parametrize(("bad", "words"), [("8.00", "nan"), ("us", "Ghz"), ("(8192, 1, 1)", "(8192, 1)")])
def test_ncu_values_that_are_wrong(tmp_path, bad, words):
    path = tmp_path / "bad.csv"
    text = NCU.read_text().replace(f'"{bad}"', f'"{words}"', 1)
    path.write_text(text)
    if words == "nan":
        assert read_profile(path).kernels[0].duration_s is None, "a metric that the tool could not measure"
        return
    with pytest.raises(InputError, match=r"line 4"):
        read_profile(path)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (1.0, "nsecond", (1e-9, "s")),
        (2.0, "Kbyte/block", (2000.0, "byte/block")),
        (3.0, "Tbyte/second", (3e12, "byte/s")),
        (4.0, "cycle/nsecond", (4e9, "cycle/s")),
        (5.0, "inst", (5.0, "inst")),
        (6.0, "", (6.0, "")),
    ],
)
def test_units(value, unit, expected):
    found = to_si(value, unit)
    assert (found[0], found[1]) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize(("unit", "scale"), [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3)])
def test_nsys_stats_trace_in_any_time_unit(tmp_path, unit, scale):
    path = tmp_path / "trace.csv"
    path.write_text(
        f"Start ({unit}),Duration ({unit}),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Bytes (MB),Device,Strm,Name\n"
        "1000,20,5,4,1,1,128,1,1,,NVIDIA H100 (1),7,gemm\n1050,30,6,,,,,,,4.2,NVIDIA H100 (1),7,[CUDA memcpy HtoD]\n"
    )
    profile = read_profile(path)
    assert len(profile.kernels) == 1
    assert profile.kernels[0].duration_s == pytest.approx(20 * scale)
    assert profile.kernels[0].device == "GPU 1"
    assert profile.totals[0].total_s == pytest.approx(30 * scale)


def test_nsys_stats_summary_below_other_output(tmp_path):
    path = tmp_path / "sum.csv"
    path.write_text(
        "Processing [run.sqlite] with [cuda_gpu_kern_sum.py]...\n\n"
        "Time (%),Total Time (ns),Instances,Avg (ns),Name\n75.0,3000,3,1000.0,gemm\n25.0,1000,2,500.0,copy\n"
    )
    rows = list_kernels(read_profile(path))
    assert [(row.kernel, row.launches) for row in rows] == [("gemm", 3), ("copy", 2)]
    assert [row.share for row in rows] == pytest.approx([0.75, 0.25])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n1,2\n", "no known profiler"),
        ("Dispatch_ID,Kernel_Name,Counter_Name,Counter_Value\n1,k,SQ_WAVES,nan\n", "line 2: counter_value"),
        ("Dispatch_ID,Kernel_Name,Counter_Name,Counter_Value\n1,k,SQ_WAVES\n", "line 2: has 3 cells"),
        ("Dispatch_ID,Kernel_Name,Dispatch_ID\n1,k,1\n", "twice"),
        ('Dispatch_ID,Kernel_Name\n1,"k\n', "not valid CSV"),
        ("Kind,Kernel_Name,Start_Timestamp,End_Timestamp,Function\nK,k,5,4,f\n", "line 2"),
        ("Name,Calls,TotalDurationNs\nk,1.5,7\n", "line 2: calls"),
        ("Start (ns),Duration (apples),Strm,Name\n1,2,3,k\n", "apples"),
    ],
)
def test_tables_that_are_wrong_name_the_place(tmp_path, text, words):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_profile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_timestamps_that_a_spreadsheet_rounded_give_no_duration(tmp_path):
    path = tmp_path / "timestamps.csv"
    path.write_text("Dispatch_ID,GPU_ID,Kernel_Name,Start_Timestamp,End_Timestamp\n1,2,k,8.1097E+14,8.1097E+14\n")
    profile = read_profile(path)
    assert profile.kernels[0].duration_s is None
    assert any("spreadsheet" in line for line in profile.remarks)
