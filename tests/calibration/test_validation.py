"""What `moesim validate` answers: every row predicted or skipped with a reason, and summaries that follow from rows."""

import math

import msgspec
import numpy as np
import pytest

from calibration.runs import MeasuredRun
from calibration.validation import predict_run, validate_files
from tests.calibration.synthetic import measure, planned_runs, prior, truth, write_runs
from tests.cli.conftest import run  # noqa: F401 (fixture)

METRICS = ("itl_p50_ms", "output_tok_per_s")


@pytest.fixture(scope="module")
def runs() -> list[MeasuredRun]:
    """Three runs as the prior predicts them, with noise, and one that no card can hold."""
    planned = planned_runs(models=("olmoe-1b-7b",), concurrency=(1, 2, 4), eager=(False,), metrics=METRICS)
    measured = measure(planned, prior(), np.random.default_rng(11))
    huge = msgspec.structs.replace(planned[0].request, model="deepseek-v3")
    return [*measured, msgspec.structs.replace(planned[0], id="too-large", request=huge)]


@pytest.fixture(scope="module")
def table(runs, tmp_path_factory):
    path = write_runs(tmp_path_factory.mktemp("runs") / "runs.json", runs)
    return validate_files([path], jobs=1, parameters=prior())


def test_rows_and_skipped_rows_are_all_rows(table, runs):
    assert len(table.rows) + len(METRICS) * len(table.skipped) == len(METRICS) * len(runs)
    assert [item.id for item in table.skipped] == ["too-large"]
    assert "does not fit" in table.skipped[0].reason or "memory" in table.skipped[0].reason


def test_runs_as_predicted_have_no_error_beyond_their_noise(table):
    assert all(abs(row.relative_error) < 0.2 for row in table.rows)
    assert not any(row.in_fit for row in table.rows)
    for row in table.rows:
        assert 0 < row.predicted_low < row.predicted < row.predicted_high < math.inf
        assert row.predicted**2 == pytest.approx(row.predicted_low * row.predicted_high)


def test_the_summary_follows_from_the_rows(table):
    """One line a group and metric and one for all; shares of the measured value, recomputed here from the rows."""
    lines = {(line.group, line.metric): line for line in table.summary}
    groups = {row.group for row in table.rows}
    assert set(lines) == {(group, metric) for group in [*groups, "all"] for metric in METRICS}
    for (group, metric), line in lines.items():
        chosen = [row for row in table.rows if row.metric == metric and group in {"all", row.group}]
        errors = np.array([row.predicted / row.measured - 1 for row in chosen])
        assert line.n == len(chosen)
        assert line.mape == pytest.approx(np.abs(errors).mean())
        assert line.median_ape == pytest.approx(np.median(np.abs(errors)))
        assert line.bias == pytest.approx(errors.mean())
        inside = [row.predicted_low <= row.measured <= row.predicted_high for row in chosen]
        assert line.coverage_90 == pytest.approx(np.mean(inside))


def test_the_json_contract_has_these_keys(table):
    document = table.to_dict()
    assert set(document) >= {"rows", "summary", "skipped", "parameter_sets"}
    assert set(document["rows"][0]) >= {
        "id", "metric", "measured", "predicted", "predicted_low", "predicted_high", "group", "in_fit",
    }  # fmt: skip
    assert set(document["summary"][0]) >= {
        "group",
        "metric",
        "n",
        "mape",
        "median_ape",
        "p90_ape",
        "bias",
        "coverage_90",
    }
    assert set(document["skipped"][0]) >= {"id", "reason"}


def test_other_constants_give_other_predictions(runs):
    """A host that launches half as fast cannot be met by the prior: the error is that of the constants."""
    eager = planned_runs(models=("olmoe-1b-7b",), concurrency=(1,), metrics=("itl_p50_ms",))[1]
    slow = measure([eager], truth({"host_launch_s": 2 * prior()["host_launch_s"]}), np.random.default_rng(0), 0.0)[0]
    _, known = predict_run(slow, truth({"host_launch_s": 2 * prior()["host_launch_s"]}))
    _, unknown = predict_run(slow, prior())
    assert known[0].relative_error == pytest.approx(0.0, abs=1e-9)
    assert -0.55 < unknown[0].relative_error < -0.4


def test_an_unknown_metric_and_a_gap_of_one_token_are_reasons(runs):
    odd = msgspec.structs.replace(runs[0], measured={"smoothness": 1.0})
    assert "smoothness" in predict_run(odd, prior())
    single = msgspec.structs.replace(
        runs[0],
        request=msgspec.structs.replace(runs[0].request, output_len=1),
        measured={"itl_p50_ms": 1.0},
    )
    assert "one output token" in predict_run(single, prior())


def test_the_command_prints_strict_json_and_exits_with_zero(run, runs, tmp_path):  # noqa: F811
    path = write_runs(tmp_path / "runs.json", runs[:1])
    answer = run("validate", str(path), "--json", "--jobs", "1", "--parameters", "prior-nvidia")
    assert answer.code == 0
    assert len(answer.document["rows"]) == len(METRICS)
    assert answer.document["parameter_sets"] == ["prior-nvidia"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "runs.json"),
        ('{"schema_version": 1, "runs": []}', "holds no runs"),
        ('{"schema_version": 7, "runs": []}', "schema_version is 7"),
        ('{"schema_version": 1, "runs": [{"id": "a"}]}', "missing required field"),
        ("[" * 100_000, "runs.json"),
    ],
)
def test_bad_files_end_with_two_and_one_line(run, tmp_path, content, message):  # noqa: F811
    path = tmp_path / "runs.json"
    path.write_text(content)
    answer = run("validate", str(path), "--jobs", "1")
    assert answer.code == 2
    assert answer.out == ""
    assert len(answer.err.strip().splitlines()) == 1
    assert message in answer.err


def test_an_unknown_set_or_folder_of_folds_is_refused(run, runs, tmp_path):  # noqa: F811
    path = str(write_runs(tmp_path / "runs.json", runs[:1]))
    assert "prior-nvidia" in run("validate", path, "--parameters", "prior-nvidea").err
    answer = run("validate", path, "--out-of-fold", str(tmp_path))
    assert (answer.code, "folds.json" in answer.err) == (2, True)


def test_disturbed_values_count_and_are_summed_up_without_them_too(runs, tmp_path):
    """A stall of half the loop: its throughput is off, its median gap is not."""
    halved = {name: value / 2 if name == "output_tok_per_s" else value for name, value in runs[0].measured.items()}
    stalled = msgspec.structs.replace(runs[0], id="stalled", measured=halved, flags=("ttft_stall",))
    path = write_runs(tmp_path / "runs.json", [*runs[:3], stalled])
    found = validate_files([path], jobs=1, parameters=prior())
    assert [(row.id, row.metric) for row in found.rows if row.flaw] == [("stalled", "output_tok_per_s")]
    counts = [
        {line.metric: (line.n, line.mape < 0.1) for line in lines if line.group == "all"}
        for lines in (found.summary, found.summary_undisturbed)
    ]
    assert counts == [
        {"itl_p50_ms": (4, True), "output_tok_per_s": (4, False)},
        {"itl_p50_ms": (4, True), "output_tok_per_s": (3, True)},
    ]


def test_without_disturbed_values_there_is_one_summary(table):
    assert table.summary_undisturbed == []
