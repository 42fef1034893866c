"""Bytes from raw request counters: the saved copy of 8 MiB on MI300X and MI200, and the formula's limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.profilers import read_profile
from calibration.profilers.hbm import amd_read_bytes, amd_write_bytes, measure_traffic
from calibration.profilers.tables import Counter, Device, Kernel, Profile
from tests.calibration.samples import PROFILERS, needs

MIB8 = 8 * 1024 * 1024
counts = st.integers(0, 10**12)


@pytest.mark.reference
@needs(PROFILERS)
def test_the_saved_copy_reads_and_writes_8_mib_on_mi300x():
    profile = read_profile(PROFILERS / "rocprofiler_compute_mi300x" / "vcopy_rocpd_pmc_perf_long.csv")
    traffic = measure_traffic(profile)
    assert len(traffic) == 3
    for item in traffic:
        assert 8.398e6 <= item.read_bytes <= 8.403e6
        assert item.write_bytes == MIB8
        assert 2.0e12 < item.bytes_per_s < 2.6e12
        assert 0.15 < item.occupancy < 0.25
    derived = {
        (counter.dispatch, counter.counter): counter.value for counter in profile.counters if "SIZE" in counter.counter
    }
    assert not derived, "the bytes come from the raw requests, not from the tool's own sums"


@pytest.mark.reference
@needs(PROFILERS)
@pytest.mark.parametrize("drop_sums", [False, True])
def test_channels_and_their_sum_agree_in_the_wide_file(drop_sums):
    """The wide file holds 128 channels and the tool's sum, from different runs of the program."""
    profile = read_profile(PROFILERS / "rocprofiler_compute_mi300x" / "vcopy_pmc_perf.csv")
    kept = [item for item in profile.counters if not (drop_sums and item.counter.endswith("_sum"))]
    traffic = measure_traffic(
        Profile(path="", tool="", kernels=profile.kernels, counters=tuple(kept), devices=profile.devices)
    )
    assert [item.write_bytes for item in traffic] == [MIB8] * 3
    assert all(item.read_bytes == pytest.approx(8.403e6, rel=2e-4) for item in traffic)
    assert all(item.bytes_per_s is None for item in traffic), "its timestamps were rounded by a spreadsheet"


@pytest.mark.reference
@needs(PROFILERS)
def test_mi200_has_other_names_and_no_128_byte_reads():
    traffic = measure_traffic(read_profile(PROFILERS / "rocprofiler_compute_mi200" / "vcopy_pmc_perf.csv"))
    assert [item.read_bytes for item in traffic] == [8389504, 8389504, 8389568]
    assert traffic[0].write_bytes == MIB8
    assert all(item.bytes_per_s < 1638.4e9 for item in traffic), "below the peak of the data sheet"


@given(small=counts, middle=counts, large=counts)
def test_each_request_counts_with_its_size(small, middle, large):
    values = {
        "TCC_EA0_RDREQ_sum": small + middle + large,
        "TCC_EA0_RDREQ_32B_sum": small,
        "TCC_BUBBLE_sum": large,
        "TCC_EA0_WRREQ_sum": small + middle,
        "TCC_EA0_WRREQ_64B_sum": middle,
    }
    assert amd_read_bytes(values) == 32 * small + 64 * middle + 128 * large
    assert amd_write_bytes(values) == 32 * small + 64 * middle
    for missing in ("TCC_EA0_RDREQ_sum", "TCC_EA0_RDREQ_32B_sum", "TCC_BUBBLE_sum"):
        assert amd_read_bytes({name: value for name, value in values.items() if name != missing}) is None


def test_occupancy_needs_the_device():
    """A kernel with half of 4 x 8 slots full over 100 cycles of each of 2 dies."""
    counters = tuple(
        Counter(kernel="k", device="GPU 0", dispatch=1, counter=name, value=value)
        for name, value in (("SQ_WAVE_CYCLES", 400.0), ("GRBM_GUI_ACTIVE", 200.0))
    )
    kernels = (Kernel(name="k", device="GPU 0", dispatch=1, start_s=0.0, duration_s=1e-6),)
    device = Device(device="GPU 0", compute_units=4, waves_per_unit=8, dies=2)
    described = Profile(path="", tool="", kernels=kernels, counters=counters, devices=(device,))
    assert measure_traffic(described)[0].occupancy == pytest.approx(0.5)
    assert measure_traffic(Profile(path="", tool="", kernels=kernels, counters=counters)) == ()
