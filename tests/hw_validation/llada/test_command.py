"""The command: records, combinations, and one line with status 2 for what cannot work."""

# ruff: noqa: E402 - what is imported depends on what is installed

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

from hw_validation.llada.cli import build_parser, main

TINY = ["--model", "tiny-moe", "--dtype", "float32", "--device", "cpu", "--prompt-len", "5", "--block-len", "4"]
TINY += ["--generation-len", "8", "--steps", "4"]


def test_records(tmp_path, capsys):
    target = tmp_path / "runs.json"
    options = ["--repeats", "2", "--expert-loads", "--layers", "1", "--vary", "expert_execution=loop,grouped"]
    options += ["--vary", "cache=none,dual"]
    assert main([*TINY, *options, "--json", str(target)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    document = json.loads(target.read_text())
    assert document["schema"] == "moesim.llada/1"
    records = document["records"]
    assert [(r["operators"], r["settings"]["cache"]) for r in records] == [
        ("loop", "none"),
        ("loop", "dual"),
        ("slices", "none"),
        ("slices", "dual"),
    ]
    first, third = records[0], records[2]
    assert first["weights"] == "random"
    assert first["layers_reduced_from"] == 2
    assert first["measured"]["forwards"] == 4
    assert first["measured"]["forward_mean_ms"] > 0
    assert len(first["repeats"]) == 2
    assert first["repeats"][0]["tokens_sha256"] == third["repeats"][0]["tokens_sha256"]
    assert sum(first["expert_loads"]["tokens"][0]) == 2 * 4 * 13 * 2
    assert first["environment"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--model", "llada-9b"], "did you mean llada-8b"),
        (["--steps", "5"], "steps: 5"),
        (["--steps", "many"], "--steps"),
        (["--graphs"], "graphs"),
        (["--profile"], "profile"),
        (["--products", "best"], "--products"),
        (["--kernels", "triton"], "triton"),
        (["--vary", "colour=1"], "colour"),
        (["--vary", "batch=x"], "batch is a number"),
        (["--vary", "graphs=yes"], "true or false"),
        (["--vary", "cache=all"], "cache is one of"),
        (["--layers", "3"], "layers: 3"),
        (["--repeats", "0"], "repeats"),
        (["--tp", "2"], "tp: 2"),
        (["--weights", "nowhere"], "config.json"),
        (["--json", "nowhere/x.json"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_status_2(options, word, capsys):
    try:
        status = main([*TINY, *options])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert word in captured.err


def test_help_teaches():
    text = build_parser().format_help()
    for word in ("examples:", "torchrun", "--vary", "random weights", "--expert-execution"):
        assert word in text
