"""Random words never give a traceback, NaN or a half-printed answer."""

from __future__ import annotations

import contextlib
import io
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moesim.cli.main import run
from moesim.specs.catalog import list_hardware, list_models

ODD = st.one_of(
    st.sampled_from(["0", "-1", "nan", "inf", "-inf", "1e9", "", "None", "true", "1_000", "9" * 30, "0.5", "../x"]),
    st.text(max_size=8),
)
SIZES = st.sampled_from(["1", "2", "3", "4", "8"])
FLAGS = {
    "--gpus": SIZES,
    "--nodes": SIZES,
    "--tp": SIZES,
    "--dp": SIZES,
    "--ep": SIZES,
    "--pp": SIZES,
    "--input-len": st.sampled_from(["1", "17", "512", "5000"]),
    "--output-len": st.sampled_from(["1", "9", "64"]),
    "--range-ratio": st.sampled_from(["0", "0.5", "0.99"]),
    "--concurrency": st.sampled_from(["1", "7", "64"]),
    "--request-rate": st.sampled_from(["0.1", "50", "inf"]),
    "--burstiness": st.sampled_from(["0.1", "1", "5"]),
    "--num-prompts": st.sampled_from(["1", "2", "30"]),
    "--shared-prefix-len": st.sampled_from(["0", "16", "100"]),
    "--cached-prefix-len": st.sampled_from(["0", "16", "100"]),
    "--routing": st.sampled_from(["uniform", "zipf", "zipf:1.2", "eighty_twenty", "dirichlet:0.3", "identical"]),
    "--seed": st.sampled_from(["0", "1", "99"]),
    "--max-num-seqs": st.sampled_from(["1", "3", "64"]),
    "--max-num-batched-tokens": st.sampled_from(["16", "256", "8192"]),
    "--max-model-len": st.sampled_from(["600", "4096"]),
    "--gpu-memory-utilization": st.sampled_from(["0.3", "0.9"]),
    "--kv-cache-dtype": st.sampled_from(["auto", "fp8", "bfloat16"]),
    "--quantization": st.sampled_from(["none", "fp8", "int4", "mxfp4"]),
    "--frontend": st.sampled_from(["server", "offline"]),
    "--expert-map": st.sampled_from(["linear", "round_robin"]),
    "--all2all-backend": st.sampled_from(["allgather_reducescatter", "deepep_low_latency"]),
    "--generation-len": st.sampled_from(["32", "64"]),
    "--steps": st.sampled_from(["8", "32"]),
    "--block-len": st.sampled_from(["8", "32"]),
    "--cfg-scale": st.sampled_from(["0", "1.5"]),
    "--cache": st.sampled_from(["none", "prefix", "dual"]),
    "--expert-execution": st.sampled_from(["loop", "grouped"]),
}
SWITCHES = st.sampled_from(
    ["--enforce-eager", "--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--no-async-scheduling"]
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    words = ["simulate", "--json", "--model", draw(st.sampled_from(sorted(list_models())))]
    words += ["--hardware", draw(st.sampled_from(sorted(list_hardware()))), "--num-prompts", "12"]
    for flag in draw(st.lists(st.sampled_from(sorted(FLAGS)), max_size=7, unique=True)):
        value = draw(ODD) if draw(st.integers(0, 9)) == 0 else draw(FLAGS[flag])
        words.append(f"{flag}={value}")
    return words + draw(st.lists(SWITCHES, max_size=2, unique=True))


def call(words: list[str]) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    return code, out.getvalue(), err.getvalue()


def refuse(text: str) -> None:
    raise AssertionError(f"{text} in JSON output")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(command_lines())
def test_random_flags_give_an_answer_or_one_line(words: list[str]):
    code, out, err = call(words)
    if code == 0:
        document = json.loads(out, parse_constant=refuse)
        assert document["output_tokens_per_s"] > 0
        assert document["duration_s"] > 0
        assert document["ttft_ms"]["p50"] <= document["e2e_ms"]["p99"]
    else:
        assert code == 2
        assert out == ""
        assert err.startswith("moesim: ")
        assert err.count("\n") == 1


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=10), st.sampled_from(["simulate", "models", "--json", "-", "--"])), max_size=4)
)
def test_random_words_never_give_a_traceback(words: list[str]):
    code, out, err = call(words)
    assert code in (0, 2)
    assert (code == 0) == (err == "" or bool(out))
