"""What following moesim's ranking of deployments costs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.deployment_regret import Candidate, choices, choose, main, mean_regret

DATA = Path(__file__).parents[2] / "calibration/data"
DEPLOYED = {
    "h100x2": ("qwen-tp", "qwen-tp-ep", "qwen-dp-ep", "mixtral-tp", "mixtral-dp-ep"),
    "h100x4": ("qwen-tp", "qwen-pairs-ep", "qwen-dp-ep", "mixtral-tp", "mixtral-pairs-ep", "mixtral-dp-ep"),
}
RATES = st.lists(st.floats(1, 1e6), min_size=2, max_size=5)


@given(rates=RATES, gain=st.floats(0.1, 10))
def test_a_ranking_that_is_right_costs_nothing_however_wrong_its_figures(rates, gain):
    candidates = [Candidate(str(number), rate, gain * rate, False) for number, rate in enumerate(rates)]
    assert choose("load", candidates).regret == 0


@given(rates=RATES)
def test_regret_is_the_share_that_the_choice_lacks_of_the_best(rates):
    upside_down = [Candidate(str(number), rate, -rate, False) for number, rate in enumerate(rates)]
    assert choose("load", upside_down).regret == pytest.approx(1 - min(rates) / max(rates))


@pytest.mark.parametrize("machine", sorted(DEPLOYED))
def test_machines_that_no_set_was_fitted_to_lose_little(machine):
    """On two H100 and on four, deployments of two models under nine loads; three met compiling kernels."""
    found = choices(DATA / machine / f"{name}.jsonl.gz" for name in DEPLOYED[machine])
    sound = [item for item in found if not item.disturbed]
    assert (len(found), len(sound)) == (9, 6)
    assert mean_regret(sound) < 0.02
    assert mean_regret(found) < 0.05


def test_the_command_prints_json(capsys):
    main([*(str(DATA / f"h100x2/{name}.jsonl.gz") for name in ("mixtral-tp", "mixtral-dp-ep")), "--json"])
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["loads"] == 3
    assert 0 <= summary["mean_regret"] < 1
