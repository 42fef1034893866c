"""Records of our own runner: what it writes is what this package reads."""

import gzip
import json

import pytest

from calibration.readers import read_measurements, read_runs
from calibration.readers.steps import step_run
from calibration.schema_files import load_measurements, save_measurements
from hw_validation.records import Environment, RecordLog, Setup, make_record
from moesim.errors import InputError
from moesim.scenarios import make_scenario

MACHINE = Environment(
    machine_start="boot",
    gpu="NVIDIA H100 80GB HBM3",
    gpu_memory_bytes=85_000_000_000,
    driver="575.51",
    cuda="12.8",
    torch="2.9.0",
    python="3.12.1",
    kernel="6.8",
    cpu="EPYC",
    cpu_cores=96,
)
FLAGS = {
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "enforce_eager": False,
    "cudagraph_capture_sizes": [1, 2, 512],
    "kv_cache_dtype": "auto",
    "prefix_caching": False,
    "async_scheduling": True,
    "tensor_parallel_size": 1,
}
LOOP = {"concurrency": 8, "input_len": 256, "output_len": 128, "num_requests": 32}
VALUES = {
    "ttft_median_ms": 20.5,
    "tpot_mean_ms": 8.0,
    "itl_median_ms": 7.9,
    "output_tokens_per_s": 900.0,
    "duration_s": 4.5,
    "x": None,
}


def setup(**change):
    words = {
        "model": "olmoe-1b-7b",
        "num_layers": 16,
        "weights": "dummy",
        "engine": "vllm",
        "engine_version": "0.24.0",
        "environment": MACHINE,
        "flags": FLAGS,
    }
    return Setup(**(words | change))


def write(path, *records):
    log = RecordLog(path)
    for record in records:
        log.append(record)
    return path


def test_a_closed_loop_becomes_a_run(tmp_path):
    path = write(tmp_path / "r.jsonl", make_record("closed_loop", "loop/8", setup(), LOOP, values=VALUES))
    ((run,), skipped) = read_runs(path)
    assert not skipped
    request = run.request
    assert (request.model, request.hardware, request.tp, request.concurrency) == ("olmoe-1b-7b", "h100", 1, 8)
    assert (request.num_prompts, request.max_num_seqs, request.max_cudagraph_capture_size) == (32, 256, 512)
    assert (request.frontend, request.enable_prefix_caching) == ("offline", False)
    assert run.measured == {
        "ttft_p50_ms": 20.5,
        "tpot_mean_ms": 8.0,
        "itl_p50_ms": 7.9,
        "output_tok_per_s": 900.0,
        "elapsed_s": 4.5,
    }


def test_every_kind_keeps_all_that_was_recorded(tmp_path):
    steps = {"decodes": [4, 4], "gpu_ms": [1.5, 1.25], "graph_mode": ["FULL", None]}
    point = {"batch_size": 4, "context_len": 256}
    benchmark = {"operation": "all_reduce", "num_bytes": 1024, "ranks": 8, "skew": 0.0}
    path = write(
        tmp_path / "r.jsonl",
        make_record(
            "environment",
            "e",
            setup(model="none", engine="none"),
            {},
            values={},
            tables={"versions": [["vllm", "0.24"]]},
        ),
        make_record(
            "decode_step", "d", setup(), point | {"router_spread": 1.0}, values={"gpu_median_ms": 1.4}, steps=steps
        ),
        make_record("microbenchmark", "g", setup(), {"operation": "gemm", "rows": 8}, values={"time_us": 5.0}),
        make_record("microbenchmark", "c", setup(), benchmark, values={"time_us": 9.0}),
        make_record(
            "step_kernels",
            "k",
            setup(),
            point,
            values={"kernels_per_step": 9.0},
            tables={"kernels": [["gemm", 2, 3.5]]},
        ),
        make_record("step_counters", "n", setup(), point, values={"dram_bytes": 1e9}),
        make_record("open_loop", "o", setup(), LOOP | {"load": 0.5}, values=VALUES | {"offered_requests_per_s": 3.5}),
    )
    items = read_measurements(path)
    assert [item.kind for item in items] == [
        "machine",
        "decode_step",
        "operator",
        "collective",
        "kernels",
        "counters",
        "serving",
    ]
    decode, collective = items[1], items[3]
    assert (decode.steps, decode.routing, decode.layers) == (steps, "router_spread:1.0", 16)
    assert decode.hardware.details["machine_start"] == "boot"
    assert decode.software.versions["driver"] == "575.51"
    assert collective.hardware.devices == 8
    assert items[4].tables == {"kernels": [["gemm", 2, 3.5]]}
    assert items[6].request["request_rate"] == 3.5
    assert all(item.provenance.date and item.provenance.sha256 for item in items)
    saved = tmp_path / "m.parquet"
    save_measurements(saved, items)
    assert load_measurements(saved) == items
    runs, skipped = read_runs(saved)
    assert (len(runs), len(skipped)) == (1, 6), "whole runs are predicted, the rest is told"


def test_a_record_that_holds_the_request_itself(tmp_path):
    request = {
        "model": "mixtral-8x7b",
        "hardware": "h200",
        "input_len": 512,
        "output_len": 8,
        "frontend": "offline",
        "gpus": 2,
        "tp": 2,
    }
    point = request | {"request_rate": None, "concurrency": None, "repeat": 0, "prompt_seed": 3}
    path = write(
        tmp_path / "r.jsonl",
        make_record("closed_loop", "b", setup(num_layers=32, model="mixtral-8x7b"), point, values=VALUES),
    )
    ((run,), _) = read_runs(path)
    assert (run.request.hardware, run.request.tp, run.request.request_rate) == ("h200", 2, float("inf"))
    assert read_measurements(path)[0].kind == "offline"


def test_a_model_with_fewer_layers_is_not_predicted(tmp_path):
    path = write(tmp_path / "r.jsonl", make_record("closed_loop", "l", setup(num_layers=4), LOOP, values=VALUES))
    runs, skipped = read_runs(path)
    assert not runs
    assert "4 of the 16 layers" in skipped[0].reason


def test_packed_files_and_cut_lines(tmp_path):
    record = make_record("closed_loop", "a", setup(), LOOP, values=VALUES)
    path = write(tmp_path / "r.jsonl", record)
    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes() + b'{"kind": "closed_'))
    assert len(read_measurements(packed)) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"kind": "other"}, "kind is 'other'"),
        ({"more": 1}, "more"),
        ({"values": {"t": "x"}}, "line 1"),
        ({"point": {"a": 2**70}}, "line 1"),
    ],
)
def test_wrong_records_name_the_line(tmp_path, change, words):
    path = write(tmp_path / "r.jsonl", make_record("closed_loop", "a", setup(), LOOP, values=VALUES))
    document = json.loads(path.read_text()) | change
    path.write_text(json.dumps(document) + "\n")
    with pytest.raises(InputError, match=words) as caught:
        read_measurements(path)
    assert f"{path} line 1" in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((2, 1, False), (2, 2, 1, 1)),
        ((2, 1, True), (2, 2, 1, 2)),
        ((1, 2, True), (2, 1, 2, 2)),
        ((2, 4, True), (8, 2, 4, 8)),
        ((1, 2, False), (2, 1, 2, 1)),
    ],
)
def test_parallel_sizes_become_the_deployment(tmp_path, sizes, expected):
    tp, dp, ep = sizes
    parallel = {
        "gpus": tp * dp,
        "tensor_parallel_size": tp,
        "data_parallel_size": dp,
        "enable_expert_parallel": ep,
        "all2all_backend": "allgather_reducescatter",
        "custom_all_reduce": True,
        "enable_eplb": False,
        "num_redundant_experts": 0,
        "topology": ["GPU0 X NV18"],
    }
    point = {"batch_size": 16, "context_len": 256, "router_spread": 0.0}
    values = {"gpu_median_ms": 3.5, "context_tokens_mean": 4200.0}
    there = setup(flags=FLAGS | parallel)
    path = write(
        tmp_path / "r.jsonl",
        make_record("closed_loop", "loop/8", there, LOOP, values=VALUES),
        make_record("decode_step", "decode/16", there, point, values=values),
    )
    runs, _ = read_runs(path)
    deployment = make_scenario(runs[0].request).deployment
    found = (deployment.tensor_parallel_size, deployment.data_parallel_size, deployment.expert_parallel_size)
    assert (runs[0].request.gpus, *found) == expected
    steps = [step_run(item) for item in read_measurements(path) if item.kind == "decode_step"]
    assert (steps[0].request.gpus, steps[0].request.tp, steps[0].request.dp, steps[0].request.ep or 1) == expected
    assert steps[0].step.decodes == 16


def test_redundant_experts_and_their_moves_are_read(tmp_path):
    sizes = {"gpus": 2, "tensor_parallel_size": 1, "data_parallel_size": 2, "enable_expert_parallel": True}
    moves = {"enable_eplb": True, "num_redundant_experts": 2, "eplb_interval": 200, "eplb_sync": True}
    path = write(
        tmp_path / "r.jsonl",
        make_record("closed_loop", "loop/8", setup(flags=FLAGS | sizes | moves), LOOP, values=VALUES),
    )
    ((run,), _) = read_runs(path)
    request = run.request
    assert (request.redundant_experts, request.eplb_interval) == (2, 200)
    assert request.enable_eplb and request.eplb_sync


def test_a_loop_with_forced_skew_is_not_taken_for_an_even_one(tmp_path):
    skewed = LOOP | {"router_spread": 1.0, "router_falling": True}
    path = write(tmp_path / "r.jsonl", make_record("closed_loop", "loop/8", setup(), skewed, values=VALUES))
    runs, skipped = read_runs(path)
    assert not runs
    assert "experts were made popular" in skipped[0].reason
