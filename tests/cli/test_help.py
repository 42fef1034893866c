"""Help teaches, is quick, and knows every flag of the contract."""

from __future__ import annotations

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


def test_root_help_loads_nothing_that_takes_long():
    """What it takes in CPU time stands in `make bench`; what makes it fast is that no library is loaded."""
    program = (
        "import sys; sys.argv = ['moesim', '--help']\n"
        "from moesim.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(*sys.modules, file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = set(answer.stderr.split())
    assert "moesim.cli.main" in loaded
    assert not loaded & {"numpy", "scipy", "pandas", "simpy", "msgspec", "yaml", "sklearn", "joblib", "matplotlib"}
