"""rocpd and Nsight Systems databases: what they yield, what is absent, and files made to do harm."""

import gzip
import sqlite3

import pytest

from calibration.profilers import read_profile
from calibration.profilers.hbm import measure_devices, measure_traffic
from calibration.profilers.summary import list_absent
from calibration.sources import Limits
from moesim.errors import InputError
from tests.calibration.profilers.databases import UUID, make_nsys, make_rocpd
from tests.calibration.samples import PROFILERS, needs

nsys_samples = PROFILERS / "nsys"


@pytest.mark.reference
@needs(PROFILERS)
def test_rocpd_kernels_counters_steps_and_device(tmp_path):
    profile = read_profile(make_rocpd(tmp_path / "results.db"))
    copy, gemm = profile.kernels
    assert (copy.name, copy.device, copy.start_s, copy.duration_s) == ("copy", "Agent 4", 0.0, pytest.approx(5e-6))
    assert gemm.duration_s == pytest.approx(1e-9), "nanoseconds survive timestamps of 10^18"
    assert copy.grid == (4, 2, 1), "1000 work-items in groups of 256 are 4 groups"
    assert (copy.step, gemm.step) == (0, None), "only the copy was launched inside the marked step"
    assert profile.steps[0].generation.requests == 4
    traffic = measure_traffic(profile)[0]
    assert traffic.read_bytes == 2 * (128 * 16 + 64 * 16 + 32 * 8), "both dies count"
    assert traffic.write_bytes == 2 * 640
    device = profile.devices[0]
    assert (device.name, device.compute_units, device.waves_per_unit, device.dies) == (
        "AMD Instinct MI300X",
        304,
        32,
        8,
    )


@pytest.mark.reference
@needs(PROFILERS)
def test_an_empty_rocpd_database_says_what_is_absent(tmp_path):
    path = make_rocpd(tmp_path / "results.db")
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        for table in ("pmc_event", "kernel_dispatch", "region"):
            connection.execute(f"DELETE FROM rocpd_{table}{UUID}")
    connection.close()
    absent = " ".join(read_profile(path).absent)
    assert all(word in absent for word in ("kernels:", "counters:", "steps:"))


@pytest.mark.reference
@needs(PROFILERS)
def test_a_rocpd_view_is_never_run(tmp_path):
    """A file whose `kernels` view never ends is read from its tables all the same."""
    path = make_rocpd(tmp_path / "results.db")
    with sqlite3.connect(path) as connection:
        connection.execute("DROP VIEW kernels")
        connection.execute(
            "CREATE VIEW kernels AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT count(*) FROM n"
        )
    connection.close()
    assert len(read_profile(path).kernels) == 2


def test_nsys_graph_nodes_steps_metrics_and_device(tmp_path):
    profile = read_profile(make_nsys(tmp_path / "run.sqlite"))
    first, second = profile.kernels
    assert (first.graph_node, second.graph_node, first.step, second.step) == (5, 6, 0, 0)
    assert second.start_s == pytest.approx(2.5e-6)
    assert profile.steps[0].context.query == 64
    assert profile.steps[0].tokens == 67
    metric = profile.counters[0]
    (traffic,) = measure_devices(profile)
    assert traffic.read_bytes == pytest.approx(0.5 * 3.35e12 * 1e-6), "half the peak over a microsecond of samples"
    assert (traffic.write_bytes, traffic.bytes_per_s) == (None, None)
    assert (metric.counter, metric.value, metric.unit, metric.device) == (
        "DRAM Read Bandwidth [Throughput %]",
        50.0,
        "%",
        "GPU 0",
    )
    assert profile.devices[0].memory_bytes_per_s == 3.35e12


@pytest.mark.parametrize(("metrics", "kernels", "words"), [(False, True, "GPU_METRICS"), (True, False, "KERNEL")])
def test_a_missing_nsys_table_is_absent_not_guessed(tmp_path, metrics, kernels, words):
    profile = read_profile(make_nsys(tmp_path / "run.sqlite", metrics=metrics, kernels=kernels))
    assert any(words in line for line in list_absent(profile))


@pytest.mark.reference
@needs(nsys_samples)
def test_the_saved_nsys_exports():
    two = read_profile(nsys_samples / "h100_2gpu_1s.sqlite.gz")
    assert len(two.kernels) == 3442
    assert sum(total.count for total in two.totals if total.what == "copy") == 904
    assert sum(kernel.duration_s for kernel in two.kernels) == pytest.approx(44.830e-3, rel=1e-4)
    assert any("TARGET_INFO_GPU" in line for line in two.absent)
    assert any("16782" in line for line in two.absent)
    one = read_profile(nsys_samples / "rtx3080_minimal.sqlite")
    assert (len(one.kernels), one.devices[0].compute_units, one.devices[0].memory_bytes_per_s) == (2, 68, 760.08e9)


def _table(path, sql):
    connection = sqlite3.connect(path)
    connection.executescript(sql)
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("CREATE TABLE other (a)", "neither rocpd nor Nsight"),
        ("CREATE TABLE StringIds (id)", "no column value"),
        (
            "CREATE VIEW StringIds AS SELECT 1 AS id, 'x' AS value; CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start)",
            "StringIds",
        ),
        (
            'CREATE TABLE StringIds (id, value); CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start, "end", deviceId,'
            " streamId, correlationId, demangledName, gridX, gridY, gridZ, blockX, blockY, blockZ);"
            " INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES ('x', 2, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1)",
            "row 1",
        ),
        (
            "CREATE TABLE StringIds (id, value); INSERT INTO StringIds VALUES (0, 'k'); CREATE TABLE"
            ' CUPTI_ACTIVITY_KIND_KERNEL (start, "end", deviceId, streamId, correlationId, demangledName, gridX, gridY,'
            " gridZ, blockX, blockY, blockZ);"
            " INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (9, 2, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1)",
            "before it starts",
        ),
        ("CREATE TABLE rocpd_string_x (id, string)", "rocpd_kernel_dispatch"),
    ],
)
def test_databases_that_lack_or_bend_a_table(tmp_path, sql, words):
    path = _table(tmp_path / "bad.sqlite", sql)
    with pytest.raises(InputError, match=words) as caught:
        read_profile(path)
    assert str(path) in str(caught.value)


def test_a_generated_column_is_not_computed(tmp_path):
    path = _table(
        tmp_path / "bad.sqlite",
        "CREATE TABLE StringIds (id, value AS (hex(id))); INSERT INTO StringIds (id) VALUES (9)",
    )
    with pytest.raises(InputError, match="no column value"):
        read_profile(path)


def test_queries_end_at_the_time_limit(tmp_path):
    path = make_nsys(tmp_path / "run.sqlite")
    with sqlite3.connect(path) as connection:
        connection.execute(
            "INSERT INTO StringIds WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 400000)"
            " SELECT x + 10, 'name' FROM n"
        )
    connection.close()
    with pytest.raises(InputError, match="longer than 0 s"):
        read_profile(path, Limits(query_s=0.0))
    with pytest.raises(InputError, match="more than 1000 rows"):
        read_profile(path, Limits(rows=1000))


def test_reading_leaves_the_file_as_it_was(tmp_path):
    path = make_nsys(tmp_path / "run.sqlite")
    before = path.read_bytes()
    path.chmod(0o400)
    read_profile(path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["run.sqlite"]


def test_an_unmerged_log_and_a_cut_file_are_refused(tmp_path):
    path = make_nsys(tmp_path / "run.sqlite")
    (tmp_path / "run.sqlite-wal").write_bytes(b"changes")
    with pytest.raises(InputError, match="unmerged"):
        read_profile(path)
    cut = tmp_path / "cut.sqlite"
    cut.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(InputError, match=r"cut\.sqlite"):
        read_profile(cut)


def test_a_packed_database_is_unpacked_within_the_limit(tmp_path):
    packed = tmp_path / "run.sqlite.gz"
    packed.write_bytes(gzip.compress(make_nsys(tmp_path / "run.sqlite").read_bytes()))
    assert len(read_profile(packed).kernels) == 2
    with pytest.raises(InputError, match="unpacks to more than 9999 bytes"):
        read_profile(packed, Limits(database_bytes=9999))
