from __future__ import annotations

import sys
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hw_validation.server import client_worker
from hw_validation.server.bench import BenchmarkError
from hw_validation.server.counters import difference, parse_counters
from hw_validation.server.expert_counts import count_experts, load_statistics
from hw_validation.server.process import ServerStartError, launch, wait_until_ready
from hw_validation.server.results import check_lengths, summarize_results
from moesim.specs.catalog import get_model
from tests.hw_validation.server.site import alive, wait_for

OLMOE = get_model("olmoe-1b-7b")


def result(**changes: Any) -> dict[str, Any]:
    base = {"duration": 4.0, "ttfts": [0.1, 0.3], "itls": [[0.02, 0.04], []], "output_lens": [3, 1]}
    return base | {"input_lens": [10, 20], "failed": 0} | changes


def test_values_follow_from_the_requests_themselves() -> None:
    values = summarize_results([result()])
    assert values["ttft_median_ms"] == pytest.approx(200)
    assert values["tpot_mean_ms"] == pytest.approx(30)
    assert values["e2e_mean_ms"] == pytest.approx((160 + 300) / 2)
    assert values["total_tokens_per_s"] == pytest.approx((30 + 4) / 4)


def test_messages_with_several_tokens_keep_the_time_per_token() -> None:
    one_by_one = result(ttfts=[0.1], itls=[[0.01] * 8], output_lens=[9], input_lens=[1])
    in_pairs = result(ttfts=[0.1], itls=[[0.02] * 4], output_lens=[9], input_lens=[1])
    assert summarize_results([one_by_one])["tpot_mean_ms"] == pytest.approx(10)
    assert summarize_results([in_pairs])["tpot_mean_ms"] == pytest.approx(10)


def test_two_halves_give_the_whole() -> None:
    whole = summarize_results([result()])
    first = result(ttfts=[0.1], itls=[[0.02, 0.04]], output_lens=[3], input_lens=[10])
    second = result(ttfts=[0.3], itls=[[]], output_lens=[1], input_lens=[20], duration=2.0)
    assert summarize_results([first, second]) == whole


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"failed": 2}, "2 requests failed"),
        ({"errors": ["", "boom\nConnection reset"]}, "1 requests failed, the first: Connection reset"),
        ({"ttfts": []}, "holds no requests"),
    ],
)
def test_unusable_results_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BenchmarkError, match=complaint):
        summarize_results([result(**changes)])


def test_summary_without_details_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="--save-detailed"):
        summarize_results([{"duration": 1.0, "completed": 3}])


def test_lengths_may_spread_as_far_as_they_were_asked_to() -> None:
    results = [result(input_lens=[90, 110], output_lens=[8, 12])]
    check_lengths(results, 100, 10, range_ratio=0.2)
    with pytest.raises(BenchmarkError, match="answers have 8 to 12 tokens"):
        check_lengths(results, 100, 10, range_ratio=0.0)
    with pytest.raises(BenchmarkError, match=r"prompts have 100\.0 tokens on average, 128"):
        check_lengths(results, 128, 10, range_ratio=0.2)


def test_counters_are_summed_over_engines_and_differenced() -> None:
    lines = ("# HELP x", 'vllm:num_preemptions_total{engine="0"} 2.0', 'vllm:num_preemptions_total{engine="1"} 1')
    page = "\n".join(lines)
    before, after = parse_counters(page), parse_counters(page.replace("2.0", "7.0"))
    assert before == {"preemptions": 3.0}
    assert difference([before, before], [after, before]) == {"preemptions": 5.0}


def test_expert_counts_keep_every_choice() -> None:
    rng = np.random.default_rng(0)
    routed = [rng.integers(0, 64, (tokens, 16, 8)) for tokens in (5, 11)]
    counts = np.array(count_experts(routed, OLMOE))
    assert counts.shape == (16, 64)
    assert (counts.sum(axis=1) == 16 * 8).all()
    assert counts[3, 7] == sum(int((item[:, 3] == 7).sum()) for item in routed)


def test_padding_is_no_expert_and_strange_experts_are_refused() -> None:
    assert np.sum(count_experts([np.full((4, 16, 8), -1)], OLMOE)) == 0
    with pytest.raises(BenchmarkError, match="reach 64"):
        count_experts([np.full((4, 16, 8), 64)], OLMOE)
    with pytest.raises(BenchmarkError, match="returned no routed experts"):
        count_experts([None], OLMOE)


def test_imbalance_of_even_and_of_one_sided_loads() -> None:
    assert load_statistics([[5, 5, 5, 5]])["expert_load_max_over_mean"] == pytest.approx(1)
    one_sided = load_statistics([[20, 0, 0, 0], [0, 0, 0, 0]])
    assert one_sided["expert_load_max_over_mean"] == pytest.approx(4)
    assert one_sided["expert_unused_share"] == pytest.approx(0.75)


def test_whole_group_ends_even_when_the_block_raises(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 300 & echo $! >> {pids}; trap '' TERM; echo $$ >> {pids}; sleep 300"
    with pytest.raises(ServerStartError, match="not ready after 1 s"), ExitStack() as stack:
        wait_until_ready(launch(stack, ["sh", "-c", script], {}, 9, tmp_path / "log"), 1.0)
    assert wait_for(lambda: not [pid for pid in map(int, pids.read_text().split()) if alive(pid)])


def test_port_where_another_server_answers_is_refused(tmp_path: Path) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ServerStartError, match="another server answers"), ExitStack() as stack:
            launch(stack, ["true"], {}, server.server_port, tmp_path / "log")
    finally:
        server.shutdown()
        server.server_close()


def test_client_worker_runs_the_library_it_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "vllm" / "benchmarks"
    package.mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "serve.py").write_text(
        "def add_cli_args(parser):\n    parser.add_argument('--num-prompts', type=int)\n"
        "def main(args):\n    print('noise')\n    return {'completed': args.num_prompts}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("vllm", "vllm.benchmarks", "vllm.benchmarks.serve"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    client = client_worker.load_client()
    assert client is not None
    assert client(["--num-prompts", "3"]) == {"completed": 3}
