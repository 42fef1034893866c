"""Results of vllm bench serve, latency and throughput: units, what the client was told, and wrong files."""

import json

import pytest

from calibration.readers import read_measurements, read_runs
from moesim.errors import InputError
from tests.calibration.samples import PROFILERS, needs

saved = PROFILERS / "vllm_runs"
SERVE = {
    "date": "20260101-000000",
    "endpoint_type": "openai",
    "model_id": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "num_prompts": 100,
    "request_rate": "inf",
    "burstiness": 1.0,
    "max_concurrency": 8,
    "duration": 50.0,
    "completed": 100,
    "total_input_tokens": 51200,
    "total_output_tokens": 12800,
    "request_throughput": 2.0,
    "output_throughput": 256.0,
    "total_token_throughput": 1280.0,
    "median_ttft_ms": 60.0,
    "p99_ttft_ms": 120.0,
    "mean_tpot_ms": 12.5,
    "median_itl_ms": 12.0,
}


def write(path, change=(), **words):
    document = {**SERVE, **words}
    for name in change:
        del document[name]
    path.write_text(json.dumps(document))
    return path


@pytest.mark.reference
@needs(saved)
@pytest.mark.parametrize(
    ("name", "requests", "seconds", "ttft_ms", "tokens_per_s"),
    [
        ("dstack_8xH100_vllm_serve_16qps_llama3.1-405b-fp8.json.gz", 1000, 100.667, 403.316, 1198.888),
        ("dstack_8xMI300X_vllm_serve_16qps_llama3.1-405b-fp8.json.gz", 1000, 200.416, 1544.285, 612.595),
        ("inferencex_glm5_fp8_tp8_isl1024_osl128_conc4.json", 40, 31.082, 265.000, 164.728),
        ("inferencex_glm5_fp8_tp8_isl1024_osl128_conc64.json", 640, 123.552, 901.530, 663.038),
    ],
)
def test_saved_runs_in_milliseconds_or_seconds(name, requests, seconds, ttft_ms, tokens_per_s):
    (item,) = read_measurements(saved / name)
    assert item.request["num_prompts"] == requests
    assert item.values["elapsed_s"] == pytest.approx(seconds, abs=1e-3)
    assert item.values["ttft_p50_ms"] == pytest.approx(ttft_ms, abs=1e-3)
    assert item.values["output_tok_per_s"] == pytest.approx(tokens_per_s, abs=1e-3)
    assert len(item.provenance.sha256) == 64
    assert ("lengths_vary" in item.labels) == name.startswith("dstack")
    runs, skipped = read_runs(saved / name)
    assert runs == []
    assert "hardware is not recorded" in skipped[0].reason


def test_words_told_to_the_client_make_it_a_run(tmp_path):
    path = write(tmp_path / "r.json", hardware="h100", gpus="2", tp="2", engine_version="0.24.0")
    ((run,), skipped) = read_runs(path)
    assert not skipped
    request = run.request
    assert (request.model, request.hardware, request.gpus, request.tp) == ("mixtral-8x7b", "h100", 2, 2)
    assert (request.concurrency, request.input_len, request.output_len, request.num_prompts) == (8, 512, 128, 100)
    assert run.measured["ttft_p50_ms"] == 60.0
    assert run.measured["itl_p50_ms"] == 12.0
    assert (run.engine, run.flags) == ("vllm", ("engine_assumed",)), "the file names the endpoint's form only"
    ((named,), _) = read_runs(write(tmp_path / "s.json", hardware="h100", gpus=2, tp=2, engine="sglang"))
    assert (named.engine, named.request.engine, named.flags) == ("sglang", "sglang", ())


def test_a_file_beside_it_wins_over_the_clients_words(tmp_path):
    path = write(tmp_path / "r.json", hardware="a100", tp=1)
    (tmp_path / "r.meta.yaml").write_text("hardware: h200\ngpus: 4\ntp: 4\nenforce_eager: true\n")
    ((run,), _) = read_runs(path)
    assert (run.request.hardware, run.request.tp, run.request.enforce_eager) == ("h200", 4, True)
    (tmp_path / "r.meta.yaml").write_text("hardwre: h200\n")
    with pytest.raises(InputError, match=r"r\.meta\.yaml: unknown word 'hardwre'"):
        read_runs(path)


@pytest.mark.parametrize(
    ("rate", "concurrency", "expected"), [("inf", None, float("inf")), (4.0, None, 4.0), ("inf", 8, None)]
)
def test_arrivals(tmp_path, rate, concurrency, expected):
    path = write(tmp_path / "r.json", request_rate=rate, max_concurrency=concurrency, hardware="h100", tp=2, gpus=2)
    ((run,), _) = read_runs(path)
    assert (run.request.request_rate, run.request.concurrency) == (expected, concurrency)


def test_throughput_and_latency(tmp_path):
    path = tmp_path / "t.json"
    words = {
        "elapsed_time": 20.0,
        "num_requests": 100,
        "total_num_tokens": 40000,
        "requests_per_second": 5.0,
        "tokens_per_second": 2000.0,
    }
    path.write_text(json.dumps(words))
    (item,) = read_measurements(path)
    assert (item.kind, item.values["total_tok_per_s"], item.request["frontend"]) == ("offline", 2000.0, "offline")
    path.write_text(json.dumps({"avg_latency": 1.5, "latencies": [1.5], "percentiles": {"50": 1.4, "99": 1.9}}))
    (item,) = read_measurements(path)
    assert item.values == {"elapsed_s": 1.5, "e2e_p50_ms": 1400.0, "e2e_p99_ms": pytest.approx(1900.0)}


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ({"median_ttft": 60.0}, "median_ttft is 60.0"),
        ({"p99_ttft_ms": 120000.0}, "p99_ttft_ms"),
        ({"output_throughput": 0.256}, "output_throughput"),
        ({"request_throughput": 2000.0}, "request_throughput"),
        ({"duration": 0}, "duration is 0"),
        ({"completed": "x"}, "completed is 'x'"),
        ({"median_itl_ms": -1}, "median_itl_ms"),
        ({"total_input_tokens": 10**70}, "total_input_tokens"),
    ],
)
def test_mixed_units_and_wrong_values_name_the_field(tmp_path, words, place):
    path = write(tmp_path / "r.json", **words)
    with pytest.raises(InputError, match=place) as caught:
        read_runs(path)
    assert str(path) in str(caught.value)


def test_failed_requests_are_skipped_with_the_reason(tmp_path):
    path = write(tmp_path / "r.json", hardware="h100", tp=2, gpus=2, errors=["", "timeout"])
    runs, skipped = read_runs(path)
    assert not runs
    assert "failed" in skipped[0].reason
