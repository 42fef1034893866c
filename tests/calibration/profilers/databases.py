"""Small databases in the tools' schemas, for tests."""

import sqlite3
from pathlib import Path

from tests.calibration.samples import PROFILERS

_DOCS = PROFILERS / "rocprofv3_docs"
UUID, GUID = "_0000aaaa", "0000aaaa-0000"


def make_rocpd(path: Path) -> Path:
    """A rocpd database made by the schema's own SQL: two kernels, counters over one, a marked step."""
    connection = sqlite3.connect(path)
    for name in ("rocpd_tables", "rocpd_views", "data_views", "summary_views"):
        script = (_DOCS / f"{name}.sql").read_text().replace("{{uuid}}", UUID).replace("{{guid}}", GUID)
        connection.executescript(script)
    add = connection.execute
    add(f"INSERT INTO rocpd_info_node{UUID} (id, hash, machine_id) VALUES (1, 7, 'm')")
    add(f"INSERT INTO rocpd_info_process{UUID} (id, nid, pid) VALUES (1, 1, 100)")
    add(f"INSERT INTO rocpd_info_thread{UUID} (id, nid, pid, tid) VALUES (1, 1, 1, 100)")
    details = '{"cu_count": 304, "simd_per_cu": 4, "max_waves_per_simd": 8, "num_xcc": 8}'
    add(
        f"INSERT INTO rocpd_info_agent{UUID} (id, nid, pid, type, absolute_index, product_name, extdata)"
        f" VALUES (5, 1, 1, 'GPU', 4, 'AMD Instinct MI300X', '{details}')"
    )
    add(f"INSERT INTO rocpd_info_queue{UUID} (id, nid, pid) VALUES (1, 1, 1)")
    add(f"INSERT INTO rocpd_info_stream{UUID} (id, nid, pid) VALUES (3, 1, 1)")
    add(f"INSERT INTO rocpd_info_code_object{UUID} (id, nid, pid) VALUES (1, 1, 1)")
    for key, name in ((8, "copy"), (9, "gemm")):
        add(
            f"INSERT INTO rocpd_info_kernel_symbol{UUID} (id, nid, pid, code_object_id, kernel_name, display_name)"
            f" VALUES ({key}, 1, 1, 1, '{name}.kd', '{name}')"
        )
    step = "execute_context_0(0)_generation_4(4)"
    for key, text in ((1, "copy"), (2, "hipLaunchKernel"), (3, step)):
        add(f"INSERT INTO rocpd_string{UUID} (id, string) VALUES ({key}, '{text}')")
    for key, correlation in ((1, 11), (2, 12), (3, 11), (4, 0)):
        add(f"INSERT INTO rocpd_event{UUID} (id, correlation_id) VALUES ({key}, {correlation})")
    for key, kernel, start, end in ((1, 8, 10**18 + 1000, 10**18 + 6000), (2, 9, 10**18 + 9000, 10**18 + 9001)):
        add(
            f"INSERT INTO rocpd_kernel_dispatch{UUID} (nid, pid, tid, agent_id, kernel_id, dispatch_id, queue_id,"
            " stream_id, start, end, workgroup_size_x, workgroup_size_y, workgroup_size_z, grid_size_x, grid_size_y,"
            f" grid_size_z, region_name_id, event_id) VALUES (1, 1, 1, 5, {kernel}, {key}, 1, 3, {start}, {end},"
            f" 256, 1, 1, 1000, 2, 1, 1, {key})"
        )
    for name, start, end, event in ((2, 10**18 - 50, 10**18 - 40, 3), (3, 10**18 - 100, 10**18 - 10, 4)):
        add(
            f"INSERT INTO rocpd_region{UUID} (nid, pid, tid, start, end, name_id, event_id)"
            f" VALUES (1, 1, 1, {start}, {end}, {name}, {event})"
        )
    names = [
        "TCC_EA0_RDREQ_sum",
        "TCC_EA0_RDREQ_32B_sum",
        "TCC_BUBBLE_sum",
        "TCC_EA0_WRREQ_sum",
        "TCC_EA0_WRREQ_64B_sum",
    ]
    for key, (name, value) in enumerate(zip(names, (40, 8, 16, 10, 10), strict=True), start=1):
        columns = "id, nid, pid, agent_id, name, symbol"
        add(f"INSERT INTO rocpd_info_pmc{UUID} ({columns}) VALUES ({key}, 1, 1, 5, '{name}', 's')")
        for _ in range(2):  # two dies
            add(f"INSERT INTO rocpd_pmc_event{UUID} (event_id, pmc_id, value) VALUES (1, {key}, {value})")
    connection.commit()
    connection.close()
    return path


def make_nsys(path: Path, *, metrics: bool = True, kernels: bool = True) -> Path:
    """An Nsight Systems export with one graph launch in a vLLM step, and GPU metrics of one GPU."""
    connection = sqlite3.connect(path)
    connection.executescript("""
        CREATE TABLE StringIds (id INTEGER, value TEXT);
        INSERT INTO StringIds VALUES (1, 'attention'), (2, 'experts'), (3, 'execute_context_1(64)_generation_3(3)');
        CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER, "end" INTEGER, correlationId INTEGER, nameId INTEGER);
        INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (500, 600, 77, 1);
        CREATE TABLE NVTX_EVENTS (start INTEGER, "end" INTEGER, text TEXT, textId INTEGER);
        INSERT INTO NVTX_EVENTS VALUES (450, 700, NULL, 3), (0, NULL, 'mark', NULL);
        CREATE TABLE TARGET_INFO_GPU (id INTEGER, name TEXT, memoryBandwidth INTEGER, smCount INTEGER,
            maxWarpsPerSm INTEGER);
        INSERT INTO TARGET_INFO_GPU VALUES (0, 'H100', 3350000000000, 132, 64);
    """)
    if kernels:
        connection.executescript("""
            CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, "end" INTEGER, deviceId INTEGER, streamId INTEGER,
                correlationId INTEGER, demangledName INTEGER, gridX INTEGER, gridY INTEGER, gridZ INTEGER,
                blockX INTEGER, blockY INTEGER, blockZ INTEGER, graphNodeId INTEGER);
            INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (1000, 3000, 0, 7, 77, 1, 4, 2, 1, 128, 1, 1, 5),
                (3500, 9500, 0, 7, 77, 2, 132, 1, 1, 256, 1, 1, 6);
        """)
    if metrics:
        connection.executescript("""
            CREATE TABLE TARGET_INFO_GPU_METRICS (typeId INTEGER, metricId INTEGER, metricName TEXT);
            INSERT INTO TARGET_INFO_GPU_METRICS VALUES (256, 3, 'DRAM Read Bandwidth [Throughput %]');
            CREATE TABLE GPU_METRICS (timestamp INTEGER, typeId INTEGER, metricId INTEGER, value INTEGER);
            INSERT INTO GPU_METRICS VALUES (1000, 256, 3, 40), (2000, 256, 3, 60);
        """)
    connection.commit()
    connection.close()
    return path
