"""Any bytes give an InputError of one line or a valid profile, nothing else."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.profile_command import describe_profile
from calibration.profilers import read_profile
from calibration.sources import Limits
from moesim.errors import InputError
from tests.calibration.damage import damaged
from tests.calibration.profilers.databases import make_nsys
from tests.calibration.profilers.test_tables import NCU

LIMITS = Limits(
    table_bytes=1 << 20, json_bytes=1 << 20, database_bytes=1 << 22, line_bytes=1 << 16, rows=10_000, query_s=5
)
_TRACE = (
    "Kind,Agent_Id,Stream_Id,Dispatch_Id,Kernel_Name,Correlation_Id,Start_Timestamp,End_Timestamp,Workgroup_Size_X,"
    "Workgroup_Size_Y,Workgroup_Size_Z,Grid_Size_X,Grid_Size_Y,Grid_Size_Z\n"
    "K,Agent 4,1,1,add,1,100,200,64,1,1,1024,1,1\n"
)
_LONG = (
    "GPU_ID,Dispatch_ID,Grid_Size,Workgroup_Size,Kernel_Name,Start_Timestamp,End_Timestamp,Counter_Name,Counter_Value\n"
    "2,1,1024,256,copy,10,20,TCC_BUBBLE_sum,5\n2,1,1024,256,copy,10,20,TCC_EA0_RDREQ_sum,9\n"
    "2,1,1024,256,copy,10,20,TCC_EA0_RDREQ_32B_sum,1\n"
)
_WIDE = (
    "Dispatch_ID,GPU_ID,Kernel_Name,Start_Timestamp,End_Timestamp,TCC_EA0_WRREQ[0],TCC_EA0_WRREQ_64B[0]\n"
    "0,2,k,1,2,3,4\n"
)

_STATS = (
    "Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,BlkX,BlkY,BlkZ,Device,Strm,Name\n1,2,3,4,1,1,32,1,1,H100 (0),7,k\n"
)
_CHROME = (
    '{"traceEvents":[{"ph":"X","cat":"kernel","name":"k","ts":5.5,"dur":2,"pid":0,"tid":7,"args":{"device":0,"stream":7,'
    '"correlation":3,"est. achieved occupancy %":50}},{"ph":"X","cat":"user_annotation","ts":1,"dur":3,'
    '"name":"execute_9_context_1(sq8sk8sqsq64sqsk64)_generation_1(sq1sk9sqsq1sqsk9)"},{"ph":"X","cat":"cuda_runtime",'
    '"name":"launch","ts":2,"dur":1,"args":{"correlation":3}}],"deviceProperties":[{"id":0,"numSms":132}]}'
)
_SDK = (
    '{"rocprofiler-sdk-tool":[{"agents":[{"id":{"handle":1},"type":2}],'
    '"kernel_symbols":[{"kernel_id":5,"kernel_name":"k"}],'
    '"buffer_records":{"kernel_dispatch":[{"start_timestamp":1,"end_timestamp":2,"correlation_id":{"internal":1},'
    '"dispatch_info":{"agent_id":{"handle":1},"queue_id":{"handle":1},"kernel_id":5,"dispatch_id":1,'
    '"workgroup_size":{"x":1,"y":1,"z":1},"grid_size":{"x":1,"y":1,"z":1}}}]}}]}'
)
_SUMMARY = (
    "ROCPROFV3 SUMMARY:\n\n| NAME | DOMAIN | CALLS | DURATION (nsec) |\n|---|---|---|---|\n"
    "| add | KERNEL_DISPATCH | 2 | 7 |\n"
)
_SYSTEM = "gpu_model,gpu_arch,cu_per_gpu,max_waves_per_cu,num_xcd,hbm_bw\nMI300X,gfx942,304,32,8,5324.8\n"
SEEDS = {
    "trace": _TRACE.encode(),
    "long": _LONG.encode(),
    "wide": _WIDE.encode(),
    "ncu": NCU.read_bytes(),
    "stats": _STATS.encode(),
    "chrome": _CHROME.encode(),
    "sdk": _SDK.encode(),
    "summary": _SUMMARY.encode(),
    "system": _SYSTEM.encode(),
}
WORDS = [
    b"nan",
    b"-1",
    b"1e999",
    b"1e59",
    b"",
    b",",
    b'"',
    b"\n",
    b"null",
    b"[]",
    b"{}",
    b"9" * 30,
    b"\xff",
    b"0",
    b"\0",
]
quick = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(path: Path) -> None:
    try:
        profile = read_profile(path, LIMITS)
    except InputError as error:
        assert str(path) in str(error)
        assert len(str(error)) < 1000
        return
    json.dumps(describe_profile(profile), allow_nan=False)
    for kernel in profile.kernels:
        assert kernel.duration_s is None or kernel.duration_s >= 0
        assert kernel.step is None or 0 <= kernel.step < len(profile.steps)


@quick
@given(
    content=st.binary(max_size=400),
    head=st.sampled_from([b"", b"\x1f\x8b\x08", b"PK\x03\x04", b"SQLite format 3\0", b"{", b"a,b\n"]),
)
def test_any_bytes(tmp_path, content, head):
    path = tmp_path / "input"
    path.write_bytes(head + content)
    check(path)


@quick
@pytest.mark.parametrize("name", sorted(SEEDS))
@given(data=st.data())
def test_damaged_files_of_every_text_format(tmp_path, name, data):
    path = tmp_path / "input"
    path.write_bytes(damaged(data, SEEDS[name], WORDS))
    check(path)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_undamaged_files_are_read(tmp_path, name):
    path = tmp_path / "input"
    path.write_bytes(SEEDS[name])
    profile = read_profile(path, LIMITS)
    assert profile.kernels or profile.totals or profile.devices


@quick
@given(data=st.data())
def test_damaged_databases(tmp_path, data):
    path = tmp_path / "seed.sqlite"
    if not path.exists():
        make_nsys(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "input"
    damaged.write_bytes(bytes(content[: data.draw(st.integers(100, len(content)))]))
    check(damaged)
