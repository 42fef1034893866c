"""A correction is learned where there is something to learn, refused elsewhere, and kept as plain numbers."""

import math

import msgspec
import numpy as np
import pytest

from calibration.residual_models import correction, fit_residuals
from calibration.residuals import (
    ResidualRows,
    _judge,
    correction_factor,
    learn_residuals,
    read_residuals,
    write_residuals,
)
from calibration.run_fit import scenario_of
from calibration.validation import validate_files
from moesim.errors import InputError
from moesim.simulation import simulate_scenario
from tests.calibration.synthetic import measure, planned_runs, prior, write_runs
from tests.cli.conftest import run  # noqa: F401 (fixture)


def rows(bias, rng, series=20, each=8):
    """Residuals of 20 series: a bias that follows the first feature, and noise."""
    features = rng.uniform(-1, 1, (series * each, 3))
    residuals = bias(features) + 0.05 * rng.standard_normal(series * each)
    names = np.repeat(np.arange(series), each)
    return ResidualRows(features, residuals, names.astype(np.str_), names % 5)


@pytest.mark.parametrize("kind", ["ridge", "boosting"])
def test_a_real_pattern_is_found_and_used(kind):
    answer = _judge("ttft", kind, rows(lambda x: 0.4 * x[:, 0], np.random.default_rng(0)))
    assert answer.comparison.helps
    assert answer.comparison.corrected < 0.6 * answer.comparison.physics
    assert correction(answer.whole, [0.8, 0.0, 0.0]) == pytest.approx(0.32, abs=0.12)


@pytest.mark.parametrize("kind", ["ridge", "boosting"])
def test_noise_is_not_corrected(kind):
    for seed in range(5):
        answer = _judge("ttft", kind, rows(lambda x: 0 * x[:, 0], np.random.default_rng(seed)))
        assert abs(answer.comparison.gain) < 0.02
        assert not answer.comparison.gain > 2 * answer.comparison.gain_error


def test_a_pattern_that_holds_in_one_series_only_does_not_help_the_others():
    """Each series with an offset of its own, unrelated to its features: nothing carries over."""
    rng = np.random.default_rng(3)
    made = rows(lambda x: 0 * x[:, 0], rng)
    shifted = made.residuals + np.repeat(0.3 * rng.standard_normal(20), 8)
    answers = [
        _judge("ttft", kind, ResidualRows(made.features, shifted, made.series, made.fold))
        for kind in ("ridge", "boosting")
    ]
    assert not any(answer.comparison.gain > 2 * answer.comparison.gain_error for answer in answers)


def test_plain_numbers_answer_as_the_fitted_forest_does():
    """The exported trees against scikit-learn's own prediction, on rows that the fit did not see."""
    from sklearn.ensemble import GradientBoostingRegressor

    rng = np.random.default_rng(4)
    features, target = rng.uniform(-1, 1, (200, 4)), rng.standard_normal(200)
    spread = 1.4826 * np.median(np.abs(target - np.median(target)))
    held = np.clip(target, np.median(target) - 3 * spread, np.median(target) + 3 * spread)
    known = GradientBoostingRegressor(
        n_estimators=60, max_depth=3, learning_rate=0.08, subsample=0.7, min_samples_leaf=5, random_state=0
    ).fit(features, held)
    ours = fit_residuals("boosting", features, target)
    fresh = rng.uniform(-1, 1, (50, 4))
    assert [correction(ours, row.tolist()) for row in fresh] == pytest.approx(known.predict(fresh).tolist(), abs=1e-5)


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Runs whose eager ones take a third longer than the constants say, in seven series."""
    planned = planned_runs(concurrency=(1, 2, 3, 4), metrics=("itl_p50_ms",))
    runs = [
        msgspec.structs.replace(
            item,
            measured={
                name: value * (4 / 3 if item.request.enforce_eager else 1) for name, value in item.measured.items()
            },
        )
        for copy in range(2)
        for item in (
            msgspec.structs.replace(item, id=f"{item.id}-{copy}", series=f"{item.series}-{copy % 2}")
            for item in measure(planned, prior(), np.random.default_rng(copy))
        )
    ]
    return write_runs(tmp_path_factory.mktemp("runs") / "runs.json", runs), runs


def test_validate_says_when_a_correction_is_on_and_is_better_with_it(biased, tmp_path, run):  # noqa: F811
    path, runs = biased
    found = learn_residuals(runs, parameters=prior(), jobs=1)
    assert set(found.models) == {"token"}
    assert len(found.comparisons) == 2
    write_residuals(tmp_path / "r.json", found)
    again = read_residuals(tmp_path / "r.json")
    assert again == found
    plain = validate_files([path], jobs=1, parameters=prior())
    better = validate_files([path], jobs=1, parameters=prior(), residuals=again)
    assert better.summary[-1].mape < 0.5 * plain.summary[-1].mape
    assert plain.to_dict()["residual_models"] == []
    assert better.to_dict()["residual_models"][0]["metric"] == "token"
    answer = run(
        "validate", str(path), "--residuals", str(tmp_path / "r.json"), "--parameters", "prior-nvidia", "--jobs", "1"
    )
    assert answer.code == 0
    assert "residual model" in answer.err


def test_out_of_fold_takes_the_model_that_did_not_see_the_series(biased):
    _, runs = biased
    found = learn_residuals(runs, parameters=prior(), jobs=1)
    item = runs[0]
    result = simulate_scenario(scenario_of(item, prior()), intervals=False)
    seen, unseen = (correction_factor(found, item, "itl_p50_ms", result, flag) for flag in (False, True))
    assert math.isfinite(seen)
    assert seen != unseen
    assert correction_factor(found, item, "ttft_p50_ms", result, True) == 1.0


def test_bad_files_of_models_and_too_few_series_are_refused(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"features": ["one"], "units": {}, "models": {}, "comparisons": []}')
    with pytest.raises(InputError, match="another version"):
        read_residuals(path)
    path.write_text("cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="not valid JSON"):
        read_residuals(path)
    few = planned_runs(models=("olmoe-1b-7b",), concurrency=(1,))
    with pytest.raises(InputError, match="too few"):
        learn_residuals(few, parameters=prior(), jobs=1)
