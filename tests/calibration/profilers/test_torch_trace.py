"""Chrome traces of torch.profiler: kernels, and the steps of vLLM and SGLang to which they belong."""

import json

import pytest

from calibration.profilers import read_profile
from calibration.profilers.steps import looks_like_step, make_step
from calibration.profilers.summary import list_steps
from moesim.errors import InputError
from tests.calibration.samples import PROFILERS, needs

traces = PROFILERS / "tracelens"


@pytest.mark.reference
@needs(traces)
@pytest.mark.parametrize(
    ("name", "kernels", "tokens", "context", "generation", "keys"),
    [
        ("vllm_decode_full_graph_execution", 425, 32, 0, 32, 55086),
        ("vllm_prefilldecode_piecewise_graph_execution", 413, 8192, 9, 37, 34489),
        ("sglang_qwen3-8b_decode", 555, 32, 0, 32, 32785),
    ],
)
def test_every_kernel_of_an_engine_step_is_found(name, kernels, tokens, context, generation, keys):
    profile = read_profile(traces / f"{name}.json.gz")
    assert len(profile.kernels) == kernels
    assert {kernel.step for kernel in profile.kernels} == {0}, "also when the step's kernels start after its host mark"
    (step,) = profile.steps
    assert (step.tokens, step.context.requests, step.generation.requests, step.generation.key) == (
        tokens,
        context,
        generation,
        keys,
    )
    assert step.context.query + step.generation.query == step.tokens
    (row,) = list_steps(profile)
    assert row.kernel_s <= row.device_s * (1 + 1e-6), "one stream: kernels do not overlap"


@pytest.mark.reference
@needs(traces)
@pytest.mark.parametrize(
    ("name", "kernels", "device", "units"),
    [("h100", 1465, "NVIDIA H100 80GB HBM3", 132), ("mi300", 1516, "AMD Instinct MI300X VF", 304)],
)
def test_the_same_model_on_both_vendors(name, kernels, device, units):
    profile = read_profile(traces / f"{name}_qwen1.5-0.5b_torch_trace.json.gz")
    assert len(profile.kernels) == kernels
    assert (profile.devices[0].name, profile.devices[0].compute_units) == (device, units)
    assert [step.name for step in profile.steps] == ["ProfilerStep#6"]
    inside = sum(kernel.step == 0 for kernel in profile.kernels)
    assert 0 < inside < kernels
    assert "hf_" not in repr(profile), "environment variables in the trace are not carried on"


def test_short_and_old_annotations():
    short = make_step("execute_context_2(1024)_generation_30(31)", 0.0, 1.0, on_device=False)
    assert (short.tokens, short.context.requests, short.generation.query, short.generation.key) == (1055, 2, 31, None)
    old = make_step("execute_new_2_cached_30", 0.0, 1.0, on_device=False)
    assert (old.tokens, old.context.requests, old.generation.requests) == (None, 2, 30)
    assert not looks_like_step("sm90_gemm_execute_segment_k_off")
    assert not looks_like_step("execute_context_2(1024)_generation_30(31)" + "1" * 400)


def _trace(path, events):
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def _kernel(**change):
    event = {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 100.5, "dur": 2.25}
    return event | {"args": {"device": 0, "stream": 7, "correlation": 3}} | change


def test_a_kernel_launched_outside_a_step_belongs_to_none(tmp_path):
    events = [
        _kernel(),
        _kernel(ts=200.0, args={"device": 0, "stream": 7, "correlation": 4}),
        {"ph": "X", "cat": "user_annotation", "name": "execute_context_0(0)_generation_1(1)", "ts": 10, "dur": 5},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 12, "dur": 1, "args": {"correlation": 3}},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 30, "dur": 1, "args": {"correlation": 4}},
    ]
    profile = read_profile(_trace(tmp_path / "t.json", events))
    assert [kernel.step for kernel in profile.kernels] == [0, None]
    assert profile.steps[0].start_s == pytest.approx(-90.5e-6)
    assert profile.kernels[0].duration_s == pytest.approx(2.25e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"dur": -1}, "before it starts"), ({"ts": None}, "no ts"), ({"ts": "x"}, "ts is 'x'"), ({"dur": 1e80}, "dur")],
)
def test_events_that_are_wrong(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        read_profile(_trace(tmp_path / "t.json", [_kernel(**change)]))


def test_a_trace_without_kernels_says_so(tmp_path):
    profile = read_profile(_trace(tmp_path / "t.json", []))
    assert {line.partition(":")[0] for line in profile.absent} == {"kernels", "counters", "steps", "devices"}
