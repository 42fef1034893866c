from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hw_validation.dummy_tokenizer import word_of, write_tokenizer
from hw_validation.plan import ClosedLoopPoint
from hw_validation.records import RecordLog, read_records
from hw_validation.serving import WARM_UP, client_words, measure, points, requests_table, summarize_client
from moesim.errors import InputError
from tests.hw_validation.fakes import SETUP


def option(words: Sequence[str], name: str) -> int:
    return int(words[words.index(f"--{name}") + 1])


def answer(words: Sequence[str]) -> Mapping[str, Any]:
    """What the client returns when each token takes 10 ms and the first 50 ms."""
    count, tokens = option(words, "num-prompts"), option(words, "random-output-len")
    return {
        "completed": count,
        "duration": 2.0,
        "input_lens": [option(words, "random-input-len")] * count,
        "output_lens": [tokens] * count,
        "ttfts": [0.05] * count,
        "itls": [[0.01] * (tokens - 1)] * count,
        "start_times": [100.0 + number for number in range(count)],
    }


POINT = ClosedLoopPoint(concurrency=4, input_len=256, output_len=128, num_requests=16)


def test_figures_of_a_steady_server() -> None:
    values = summarize_client(answer(client_words("http://x", Path("m"), POINT, 0)), POINT)
    assert values["ttft_median_ms"] == pytest.approx(50)
    assert values["tpot_mean_ms"] == pytest.approx(10)
    assert values["e2e_p99_ms"] == pytest.approx(50 + 127 * 10)
    assert values["output_tokens_per_s"] == 16 * 128 / 2


@pytest.mark.parametrize(
    ("field", "wrong"), [("completed", 15), ("output_lens", [128] * 15 + [9]), ("input_lens", [256] * 15 + [300])]
)
def test_incomplete_answers_are_refused(field: str, wrong: object) -> None:
    result = dict(answer(client_words("http://x", Path("m"), POINT, 0))) | {field: wrong}
    with pytest.raises(InputError):
        summarize_client(result, POINT)


def test_every_point_is_recorded_once_after_the_warm_up(tmp_path: Path) -> None:
    calls: list[Sequence[str]] = []

    def bench(words: Sequence[str]) -> Mapping[str, Any]:
        calls.append(words)
        return answer(words)

    log = RecordLog(tmp_path / "runs.jsonl")
    for _ in range(2):
        assert measure(bench, "http://x", Path("m"), log, SETUP, time.perf_counter() + 60)
    records = list(read_records(tmp_path / "runs.jsonl"))
    assert len(records) == len(list(points())) >= 10
    assert len(calls) == len(records) + 2 * len(WARM_UP)
    assert {record.point["concurrency"] for record in records} == {1, 4, 16, 64, 256}
    assert len({(record.point["input_len"], record.point["output_len"]) for record in records}) == 2


def test_sending_times_count_from_the_first_request() -> None:
    table = requests_table(answer(client_words("http://x", Path("m"), POINT, 0)))
    assert table["sent_s"][:2] == [0.0, 1.0]
    assert table["ttft_ms"][0] == 50.0


def test_prompts_have_one_token_a_word(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    write_tokenizer(tmp_path, 1000)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = [5, 999, 0, 42]
    assert tokenizer.encode(" ".join(word_of(number, 1000) for number in ids)).ids == ids
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_end_token_lies_in_no_other_word(tmp_path: Path) -> None:
    """The server's tokenizer takes special tokens out of a text before it splits words."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "olmoe"}')
    write_tokenizer(tmp_path, 20_000)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    ids = [2, 10, 1000, 10_000, 19_999, 7]
    assert tokenizer.encode(" ".join(word_of(number, 20_000) for number in ids), add_special_tokens=False) == ids
    assert tokenizer.encode(tokenizer.decode(ids), add_special_tokens=False) == ids
