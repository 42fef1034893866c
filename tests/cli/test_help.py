"""Help teaches, is quick, and knows every flag of the contract."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from moesim.cli.main import make_command
from tests.cli.conftest import Run

COMMAND = make_command()
SIMULATE_FLAGS = [
    "--model",
    "--hardware",
    "--gpus",
    "--tp",
    "--dp",
    "--ep",
    "--pp",
    "--nodes",
    "--input-len",
    "--output-len",
    "--concurrency",
    "--request-rate",
    "--trace",
    "--num-prompts",
    "--routing",
    "--seed",
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--max-model-len",
    "--enforce-eager",
    "--no-enable-prefix-caching",
    "--kv-cache-dtype",
    "--quantization",
    "--frontend",
    "--generation-len",
    "--steps",
    "--block-len",
    "--cfg-scale",
    "--cache",
    "--expert-execution",
    "--perfetto",
    "--parameters",
    "--json",
    "--csv",
]
RECOMMEND_FLAGS = [
    "--model",
    "--hardware",
    "--gpus",
    "--input-len",
    "--output-len",
    "--ttft-slo",
    "--tpot-slo",
    "--objective",
    "--parameters",
    "--json",
    "--csv",
]


def flags_of(verb: str) -> set[str]:
    options = COMMAND.commands[verb].params
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("verb", sorted(COMMAND.commands))
def test_every_verb_has_help_and_json(run: Run, verb: str):
    answer = run(f"{verb} --help")
    assert answer.code == 0
    assert f"moesim {verb}" in answer.out
    assert len(COMMAND.commands[verb].help) > 40
    assert "--json" in flags_of(verb)


@pytest.mark.parametrize("verb", sorted(COMMAND.commands))
def test_every_option_says_what_it_is(verb: str):
    for option in COMMAND.commands[verb].params:
        if option.name != "help":
            assert option.help, f"{verb} {option.opts}"


def test_flags_of_the_contract_exist():
    assert set(SIMULATE_FLAGS) <= flags_of("simulate")
    assert set(RECOMMEND_FLAGS) <= flags_of("recommend")


@pytest.mark.parametrize("words", ["", "--help"])
def test_without_a_verb_the_verbs_are_listed(run: Run, words: str):
    answer = run(words)
    assert answer.code == 0
    assert all(verb in answer.out for verb in COMMAND.commands)


def test_root_help_takes_less_than_300_ms_of_cpu():
    command = [sys.executable, "-c", "from moesim.cli.main import main; main()", "--help"]
    times: list[float] = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3
