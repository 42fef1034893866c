"""The page about a calibration: whole, self-contained, and saying of every row what its slopes say."""

import dataclasses
import re

import msgspec
import numpy as np
import pytest

from calibration.pipeline import Calibration, calibrate
from calibration.recipes import Recipe
from calibration.report import render, write_report
from calibration.report_rows import decided_by, estimate_rows, identified_by, row_errors, worst_rows
from tests.calibration.synthetic import TRUTH, measure, planned_runs, prior, truth, write_runs


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Calibration:
    """Two models, graph and eager; one eager run's gap is measured three times too long."""
    folder = tmp_path_factory.mktemp("data")
    runs = measure(planned_runs(concurrency=(1, 4)), truth(), np.random.default_rng(31))
    wrong = {**runs[1].measured, "itl_p50_ms": 3 * runs[1].measured["itl_p50_ms"]}
    runs[1] = msgspec.structs.replace(runs[1], measured=wrong, id="<script>alert(1)</script>")
    runs[2] = msgspec.structs.replace(runs[2], flags=("ttft_stall",))
    write_runs(folder / "runs.json", runs)
    recipe = msgspec.convert(
        {
            "name": "page",
            "base": "prior-nvidia",
            "engine": "vllm",
            "accelerators": ["a100-80gb"],
            "runs": ["runs.json"],
            "free": [*TRUTH, "mla_start_s"],
            "outputs": {"page-set": {"accelerators": ["a100-80gb"]}},
        },
        Recipe,
    )
    return calibrate(recipe, prior(), [folder], jobs=1)


def test_the_page_is_self_contained_and_escaped(done, tmp_path):
    path = write_report(done, tmp_path, {"gemm_slowdown": 0.0123}, "moesim calibrate runs.json")
    page = path.read_text()
    assert path == tmp_path / "page.html"
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "1.2%" in page
    assert "moesim calibrate runs.json" in page
    assert done.sets["page-set"].evidence.inputs["runs.json"] in page
    assert "warm-up stall" in page


def test_a_calibration_without_runs_has_a_page_too(done):
    page = render(dataclasses.replace(done, run_fit=None), {}, "")
    assert "Inputs" in page
    assert "data:image" not in page


def test_what_identified_a_constant_is_a_run_that_moves_with_it(done):
    known = identified_by(done.run_fit)
    eager = {run.id for run in done.observations.runs if run.request.enforce_eager}
    for name in known["host_launch_s"]:
        assert name.rsplit(" (", 1)[0] in eager
    assert known["mla_start_s"] == ()
    status = {row.key: row.status for row in estimate_rows(done, {})}
    assert status["mla_start_s"] == "prior only"
    assert status["host_launch_s"] == "fitted"


def test_the_worst_row_is_the_one_measured_wrong_and_the_page_says_why(done):
    errors = row_errors(done.run_fit)
    worst = worst_rows(errors)[0]
    assert worst.run == "<script>alert(1)</script>"
    assert worst.metric == "itl_p50_ms"
    assert worst.error < -0.5
    assert worst.predicted == pytest.approx(worst.measured * (1 + worst.error))
    assert "the host" in worst.why


def test_graph_runs_are_decided_by_the_gpu_and_eager_ones_by_the_host(done):
    linear = done.run_fit.linear
    for row, (run, metric) in enumerate(linear.observations.index):
        if metric == "itl_p50_ms" and done.observations.runs[run].request.concurrency == 1:
            eager = done.observations.runs[run].request.enforce_eager
            assert ("the host" in decided_by(linear, row)) == eager
