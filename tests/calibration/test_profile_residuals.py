"""One trace moves the constants that it shows, by as much as it shows them, and says so in the set."""

import math

import msgspec
import pytest

from calibration.calibrate_command import run_calibrate
from calibration.kernel_classes import class_of
from calibration.parameter_file import read_parameters
from calibration.profile_calibration import accelerators_of
from calibration.profile_residuals import fit_profiles, observe_profile
from calibration.profilers import read_profile
from calibration.profilers.tables import Counter, Kernel, Profile, Step
from moesim.errors import InputError
from moesim.specs.catalog import get_hardware
from moesim.specs.parameters import list_parameter_sets
from tests.calibration.samples import PROFILERS, needs
from tests.calibration.synthetic import prior
from tests.calibration.test_calibrate_command import ask, silent

H100 = get_hardware("h100")
COPY = "vectorized_elementwise_kernel<4, bfloat16_copy_kernel>"


def profile(kernels, counters=(), steps=()):
    return Profile(path="made", tool="made", kernels=tuple(kernels), counters=tuple(counters), steps=tuple(steps))


def copies(start_s, share, sizes):
    """Copies of known sizes that last a start and their bytes at a share of the peak, with counted bytes."""
    kernels, counters = [], []
    for number, size in enumerate(sizes):
        name = f"{COPY} of {size}"
        seconds = start_s + size / (share * H100.hbm_bandwidth_bytes_per_s)
        kernels.append(Kernel(name=name, device="GPU 0", start_s=number * 1e-3, duration_s=seconds, dispatch=number))
        for way, part in (("read", 0.5), ("write", 0.5)):
            counters.append(
                Counter(
                    kernel=name,
                    device="GPU 0",
                    dispatch=number,
                    counter=f"dram__bytes_{way}.sum",
                    value=part * size,
                    unit="byte",
                )
            )
    return profile(kernels, counters)


def test_counted_copies_give_bandwidth_and_start():
    found = observe_profile(copies(4e-6, 0.8, [1e4, 1e5, 1e6, 1e7, 1e8, 1e9]), H100)
    assert {item.what for item in found} == {"achieved bandwidth"}
    fitted = fit_profiles(prior(), found, "made")
    assert fitted.parameters["elementwise_hbm_efficiency"] == pytest.approx(0.8, rel=0.03)
    assert fitted.parameters["kernel_s"] == pytest.approx(4e-6, rel=0.15)
    for item in fitted.result.estimates:
        assert item.log_sd < item.prior_log_sd


def test_products_bound_by_arithmetic_say_nothing_about_memory():
    slow = copies(1e-6, 0.1, [1e8])
    product = msgspec.structs.replace(
        slow,
        kernels=tuple(msgspec.structs.replace(kernel, name="sm90_gemm") for kernel in slow.kernels),
        counters=tuple(msgspec.structs.replace(counter, kernel="sm90_gemm") for counter in slow.counters),
    )
    assert observe_profile(product, H100) == []


def test_small_steps_show_the_start_of_a_kernel_and_large_ones_do_not():
    def trace(tokens):
        kernels = [
            Kernel(
                name="rms_norm_kernel", device="GPU 0", start_s=i * 1e-4, duration_s=3.1e-6, correlation=1, dispatch=i,
                step=0, graph_node=i + 1,
            )
            for i in range(20)
        ]  # fmt: skip
        return profile(kernels, steps=[Step(name="s", start_s=0.0, duration_s=1.0, on_device=True, tokens=tokens)])

    (one,) = observe_profile(trace(16), H100)
    assert (one.what, one.measured_s) == ("start of a small kernel", pytest.approx(3.1e-6))
    assert observe_profile(trace(4096), H100) == []


def test_launches_show_where_the_gpu_waits_and_no_graph_hides_them():
    def trace(duration_s, correlation):
        kernels = [
            Kernel(
                name="odd", device="GPU 0", stream="7", start_s=i * 5e-5, duration_s=duration_s,
                correlation=correlation(i), dispatch=i,
            )
            for i in range(50)
        ]  # fmt: skip
        return [item for item in observe_profile(profile(kernels), H100) if item.what == "time a launch"]

    (seen,) = trace(1e-5, lambda i: i)
    assert seen.measured_s == pytest.approx(5e-5)
    assert trace(1e-5, lambda _: 3) == []
    assert trace(4.9e-5, lambda i: i) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_Generic_1(ncclDevKernelArgsStorage<4096ul>)", "collective"),
        ("_matmul_ogs_NNT_bf16xbf16xmxfp4_16x128x256x1_swiglu", "experts"),
        ("void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<64, 128, 128>", "attention"),
        ("kernel_unified_attention_3d", "attention"),
        ("Cijk_Alik_Bljk_BBS_BH_Bias_HA_S_SAV_UserArgs_MT32x32x256_MI16x16x1", "product"),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize64x256x8_stage3", "product"),
        ("vecCopy(double*, double*, double*, int, int) (.kd)", "copy"),
        ("_ZN5aiter24add_rmsnorm_quant_kernelIDF16bDF16bLi64ELi8ELb0EL", "elementwise"),
    ],
)
def test_names_of_real_kernels_tell_their_class(name, kind):
    assert class_of(name) == kind


def test_every_move_lies_between_prior_and_data():
    found = observe_profile(copies(4e-6, 0.5, [1e9]), H100)
    fitted = fit_profiles(prior(), found, "made")
    seen = next(item for item in fitted.result.estimates if item.name == "elementwise_hbm_efficiency")
    assert min(0.5, seen.prior) * 0.99 <= seen.value <= max(0.5, seen.prior) * 1.01
    assert math.isfinite(seen.log_sd)


@pytest.mark.reference
@needs(PROFILERS)
def test_a_trace_alone_makes_a_set_that_names_it(tmp_path):
    """The shared MI300X trace of a decode step: small kernels last longer than the prior says."""
    trace = PROFILERS / "tracelens" / "sglang_qwen3-8b_decode.json.gz"
    output = tmp_path / "mine.yaml"
    base = list_parameter_sets()["prior-amd"]
    words = ask(files=(str(trace),), output=str(output), base="prior-amd", report=str(tmp_path / "page.html"))
    run_calibrate(words, silent)
    made = read_parameters(output)
    assert made.accelerators == ("mi300x",)
    assert made.calibrated == base.calibrated
    assert made.parameters["kernel_s"].status == "fitted"
    assert made["kernel_s"] > base["kernel_s"]
    assert trace.name in made.parameters["kernel_s"].source
    assert made.parameters["gemm_slowdown"] == base.parameters["gemm_slowdown"]
    assert str(trace) in made.evidence.inputs
    page = (tmp_path / "page.html").read_text()
    assert "start of a small kernel" in page
    assert "paged_attention_ll4mi_QKV_mfma16_kernel" in page


@pytest.mark.reference
@needs(PROFILERS)
def test_the_saved_copy_gives_its_bandwidth():
    """16.8 MB in 6.73 us: 2.49 TB/s, from the raw request counters."""
    found = observe_profile(
        read_profile(PROFILERS / "rocprofiler_compute_mi300x" / "vcopy_rocpd_pmc_perf_long.csv"), get_hardware("mi300x")
    )
    (copy,) = found
    moved = next(term.factor for term in copy.terms if term.power == -1) * 5.3e12
    assert moved == pytest.approx(8_388_608 + 8.4e6, rel=0.002)
    assert moved / copy.measured_s == pytest.approx(2.49e12, rel=0.01)


@pytest.mark.reference
@needs(PROFILERS)
def test_a_trace_that_names_no_device_needs_a_base_and_two_devices_are_refused(tmp_path):
    unnamed = str(PROFILERS / "tracelens" / "vllm_decode_full_graph_execution.json.gz")
    with pytest.raises(InputError, match="--base"):
        run_calibrate(ask(files=(unnamed,), output=str(tmp_path / "x.yaml")), silent)
    pair = [PROFILERS / "tracelens" / f"{name}_qwen1.5-0.5b_torch_trace.json.gz" for name in ("h100", "mi300")]
    assert accelerators_of({str(path): read_profile(path) for path in pair}) == ["h100", "mi300x"]
    with pytest.raises(InputError, match="h100, mi300x"):
        run_calibrate(ask(files=tuple(str(path) for path in pair), output=str(tmp_path / "x.yaml")), silent)
    assert not (tmp_path / "x.yaml").exists()


def test_a_damaged_trace_is_named(tmp_path):
    path = tmp_path / "trace.json"
    path.write_text('{"traceEvents": [{"ph": "X", "cat": "kernel", "name": "a", "ts": 1, "dur"')
    with pytest.raises(InputError, match="trace"):
        run_calibrate(ask(files=(str(path),), output=str(tmp_path / "x.yaml")), silent)
