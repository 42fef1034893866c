"""A stand-in for the command `vllm`: `serve` answers what a server is asked, `bench serve` writes a result.

Variables: FAKE_FACTS (JSON merged over the configuration that is told), FAKE_HOLD (measured runs that end at once;
the next ones note "held" and wait for the file `release`, or for their parent's end), FAKE_DIR (folder for the pids
of the server's group and a list of calls).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

WORDS = sys.argv[1:]
if WORDS[0] == "serve":  # `bench` starts often and needs no http
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
else:
    BaseHTTPRequestHandler = ThreadingHTTPServer = object
FOLDER = Path(os.environ["FAKE_DIR"])


def flag(name: str, default: str = "") -> str:
    return WORDS[WORDS.index(name) + 1] if name in WORDS else default


def config() -> dict[str, dict[str, object]]:
    eager = "--enforce-eager" in WORDS
    found: dict[str, dict[str, object]] = {
        "parallel_config": {
            "tensor_parallel_size": int(flag("--tensor-parallel-size", "1")),
            "data_parallel_size": int(flag("--data-parallel-size", "1")),
            "pipeline_parallel_size": int(flag("--pipeline-parallel-size", "1")),
            "enable_expert_parallel": "--enable-expert-parallel" in WORDS,
            "all2all_backend": flag("--all2all-backend", "allgather_reducescatter"),
            "enable_eplb": "--enable-eplb" in WORDS,
            "expert_placement_strategy": flag("--expert-placement-strategy", "linear"),
        },
        "model_config": {
            "model": WORDS[1],
            "enforce_eager": eager,
            "max_model_len": int(flag("--max-model-len")),
            "quantization": None,
            "dtype": "torch.bfloat16",
        },
        "scheduler_config": {
            "max_num_seqs": int(flag("--max-num-seqs")),
            "max_num_batched_tokens": int(flag("--max-num-batched-tokens")),
            "enable_chunked_prefill": "--enable-chunked-prefill" in WORDS,
            "async_scheduling": "--async-scheduling" in WORDS,
        },
        "cache_config": {
            "enable_prefix_caching": "--enable-prefix-caching" in WORDS,
            "cache_dtype": "auto",
            "block_size": 16,
            "num_gpu_blocks": 1000,
        },
        "load_config": {"load_format": flag("--load-format", "auto")},
        "compilation_config": {
            "cudagraph_mode": 0 if eager else [2, 1],
            "cudagraph_capture_sizes": [],
        },
    }
    for part, values in json.loads(os.environ.get("FAKE_FACTS", "{}")).items():
        found[part] |= values
    return found


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0]
        if path == "/server_info" and os.environ.get("VLLM_SERVER_DEV_MODE") != "1":
            self.send_error(404)
            return
        env = {"VLLM_MOE_ROUTING_SIMULATION_STRATEGY": os.environ.get("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "")}
        bodies: dict[str, object] = {
            "/health": {},
            "/v1/models": {"data": [{"id": flag("--served-model-name")}]},
            "/version": {"version": "0.99.fake"},
            "/server_info": {"vllm_config": config(), "vllm_env": env},
        }
        if path == "/metrics":
            text = 'vllm:num_preemptions_total{engine="0"} 3.0\nvllm:prefix_cache_hits_total{engine="0"} 0.0\n'
        elif path in bodies:
            text = json.dumps(bodies[path])
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self) -> None:  # noqa: N802
        note("post " + self.path)
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(200)
        self.end_headers()
        if self.path == "/collective_rpc":
            self.wfile.write(json.dumps({"results": [json.dumps({"routers_redrawn": 16})]}).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def note(text: str) -> None:
    with (FOLDER / "calls.txt").open("a") as stream:
        stream.write(text + "\n")


def serve() -> None:
    worker = subprocess.Popen(["sleep", "600"])
    with (FOLDER / "pids.txt").open("a") as stream:
        stream.write(f"{os.getpid()} {worker.pid}\n")
    note("serve " + " ".join(WORDS))
    ThreadingHTTPServer(("127.0.0.1", int(flag("--port"))), Answers).serve_forever()


def hold() -> None:
    """Wait when this is one measured run more than FAKE_HOLD."""
    begun = sum("--save-detailed" in call for call in (FOLDER / "calls.txt").read_text().splitlines())
    if begun <= int(os.environ.get("FAKE_HOLD", "1000")):
        return
    note("held")
    parent = os.getppid()
    while os.getppid() == parent and not (FOLDER / "release").exists():
        time.sleep(0.02)


def bench() -> None:
    note("bench " + " ".join(WORDS))
    measured = "--save-detailed" in WORDS
    if measured:
        hold()
    count, tokens = int(flag("--num-prompts")), int(flag("--random-output-len"))
    prompt = int(flag("--random-input-len")) + int(flag("--random-prefix-len", "0"))
    result = {
        "duration": 2.0,
        "completed": count,
        "failed": int(os.environ.get("FAKE_FAILED", "0")) if measured else 0,
        "input_lens": [prompt] * count,
        "output_lens": [tokens - int(os.environ.get("FAKE_SHORT", "0"))] * count,
        "start_times": [100.0 + place for place in range(count)],
        "ttfts": [0.05] * count,
        "itls": [[0.01] * (tokens - 1)] * count,
        "errors": [""] * count,
    }
    Path(flag("--result-dir"), flag("--result-filename")).write_text(json.dumps(result))


if __name__ == "__main__":
    serve() if WORDS[0] == "serve" else bench()
