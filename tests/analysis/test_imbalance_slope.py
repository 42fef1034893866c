"""What rank imbalance costs: the line through steps of forced routing."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.imbalance_slope import Point, main, slope_of, slopes

DATA = Path(__file__).parents[2] / "calibration/data"
FORCED = sorted([*DATA.glob("h100x2/*-forced-*.jsonl.gz"), *DATA.glob("h100x4/*-forced.jsonl.gz")])


@given(even=st.floats(1, 1000), slope=st.floats(-5, 500), gain=st.floats(0.5, 2))
def test_points_on_a_line_give_its_slope(even, slope, gain):
    points = [Point(x, even + slope * (x - 1), gain * (even + slope * (x - 1))) for x in (1.0, 1.15, 1.3, 1.56)]
    found = slope_of("step", points)
    assert found.measured_even_ms == pytest.approx(even)
    assert found.measured_ms == pytest.approx(slope, abs=1e-6)
    assert found.predicted_ms == pytest.approx(gain * slope, abs=1e-6)
    assert found.share == pytest.approx(slope * 0.56 / even, abs=1e-6)


def test_long_prompts_cost_what_their_fullest_rank_does():
    """On two and on four H100, which no set is fitted to: each model and deployment within 20 %, 15 % on average.

    The widest experts are what is worst (Mixtral's whole ones, -17 %): in steps this long the GPU lowers its clocks,
    which is not modelled apart.
    """
    found = [item for item in slopes(FORCED) if "/prefill/" in item.step]
    assert len({item.step.split()[1].split("/")[0] for item in found}) == 3
    assert all(item.share > 0.15 for item in found)
    errors = {item.step: item.predicted_ms / item.measured_ms - 1 for item in found}
    assert max(map(abs, errors.values())) < 0.2, errors
    assert sum(map(abs, errors.values())) / len(errors) < 0.15


def test_decodes_of_few_wide_experts_pay_for_imbalance_and_those_of_many_do_not():
    """A rank with more of Mixtral's tokens fetches weights again; one of Qwen's reads all its experts anyhow."""
    found = [item for item in slopes(FORCED) if "/decode/256x" in item.step]
    mixtral = [item for item in found if "mixtral" in item.step]
    others = [item for item in found if "mixtral" not in item.step]
    assert len(mixtral) == 4
    assert len(others) >= 4
    for item in mixtral:
        assert item.predicted_ms == pytest.approx(item.measured_ms, rel=0.25), item.step
    for item in others:
        assert abs(item.share) < 0.06
        assert abs(item.predicted_ms) < 0.1 * item.predicted_even_ms


def test_the_command_prints_json(capsys):
    main([str(FORCED[0]), "--json"])
    assert {"step", "measured_ms", "predicted_ms", "share"} <= set(json.loads(capsys.readouterr().out)[0])
