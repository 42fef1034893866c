"""The package from Python: the words of the command line, typed results, data frames."""

from __future__ import annotations

import json

import pytest

import moesim
from moesim.cli.main import run
from moesim.metrics.result import SimulationResult
from moesim.planner.recommendation import Recommendation

WORDS = {"model": "olmoe-1b-7b", "hardware": "h200", "input_len": 64, "output_len": 16}


def test_public_names_are_documented():
    assert set(moesim.__all__) == {"InputError", "__version__", "estimate", "recommend", "simulate"}
    for name in ("simulate", "recommend", "estimate", "InputError"):
        assert getattr(moesim, name).__doc__


def test_simulate_returns_what_the_command_line_prints(capsys: pytest.CaptureFixture[str]):
    result = moesim.simulate(**WORDS, concurrency=4, num_prompts=16)
    assert isinstance(result, SimulationResult)
    words = "simulate --model olmoe-1b-7b --hardware h200 --input-len 64 --output-len 16 --concurrency 4"
    assert run([*words.split(), "--num-prompts", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(result.to_dict()))


def test_frames():
    frame = moesim.simulate(**WORDS, num_prompts=8).to_frame()
    assert list(frame.index) == ["ttft_ms", "tpot_ms", "itl_ms", "e2e_ms"]
    assert list(frame.columns) == ["mean", "p50", "p90", "p99"]
    answer = moesim.recommend(**WORDS, gpus=2, tpot_slo=50)
    assert isinstance(answer, Recommendation)
    assert {"strategy", "max_num_seqs", "output_tokens_per_s"} <= set(answer.to_frame().columns)
    assert answer.best == answer.candidates[0]
    state = moesim.estimate(**WORDS, batch=4)
    assert "routed experts" in set(state.to_frame()["operator"])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"model": "mixtral-8x7", "hardware": "h200"}, "did you mean 'mixtral-8x7b'"),
        ({"model": "dbrx", "hardware": "h200", "concurency": 3}, "'concurrency'"),
        ({"model": "dbrx", "hardware": "h200", "gpus": "four"}, "gpus.*'four'"),
        ({"hardware": "h200"}, "model is missing"),
    ],
)
def test_bad_words_raise_input_error(words: dict[str, object], match: str):
    with pytest.raises(moesim.InputError, match=match):
        moesim.simulate(**words)
