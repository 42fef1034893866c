"""Rows left out are predicted by constants that did not see them, and folds survive the disk."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest

from calibration.errors_left_out import (
    assign_folds,
    error_level,
    evidence_of,
    free_of,
    left_out_errors,
    row_folds,
    unit_of,
)
from calibration.fitting import pseudo_huber
from calibration.folds import SetFolds, fitted_rows, read_folds, write_folds
from calibration.run_fit import Column, apply_estimates, fit_runs, observe, solve
from calibration.validation import predict_run
from moesim.errors import InputError
from moesim.specs.catalog import get_hardware
from moesim.specs.parameters import select_parameters
from tests.calibration.synthetic import TRUTH, measure, planned_runs, prior, truth

COLUMNS = [Column(name) for name in TRUTH]


@pytest.fixture(scope="module")
def fitted():
    """Runs with noise; one configuration's gap between tokens is measured four times too long."""
    runs = measure(planned_runs(concurrency=(1, 2, 8)), truth(), np.random.default_rng(9))
    wrong = {**runs[0].measured, "itl_p50_ms": 4 * runs[0].measured["itl_p50_ms"]}
    runs[0] = msgspec.structs.replace(runs[0], measured=wrong)
    return fit_runs(prior(), observe(runs), COLUMNS, dict.fromkeys(TRUTH, 0.7), jobs=1)


@pytest.mark.parametrize("kind", ["configuration", "series", "model", "gpu"])
def test_every_row_is_in_one_fold_together_with_its_unit(fitted, kind):
    observations = fitted.linear.observations
    folds = row_folds(observations, kind)
    assert len(folds) == len(observations.index)
    by_unit = {}
    for (run, _), fold in zip(observations.index, folds.tolist(), strict=True):
        by_unit.setdefault(unit_of(observations.runs[run], kind), set()).add(fold)
    assert all(len(found) == 1 for found in by_unit.values())
    assert assign_folds(observations.runs, kind) == assign_folds(tuple(reversed(observations.runs)), kind)


def test_errors_left_out_are_those_of_a_fit_without_the_rows(fitted):
    """Moving the left-out rows' own measurements changes their errors by that much, and nothing else of theirs."""
    linear, free = fitted.linear, free_of(fitted)
    folds = row_folds(linear.observations, "configuration")
    held = folds == folds[0]
    before = left_out_errors(linear, free, "configuration")
    moved = linear.observations.measured * np.where(held, 1.7, 1.0)
    changed = with_measured(linear, moved)
    after = left_out_errors(changed, free, "configuration")
    assert after[held] == pytest.approx(before[held] - math.log(1.7), abs=1e-9)
    assert not np.allclose(after[~held], before[~held], atol=1e-6)


def with_measured(linear, measured):
    return dataclasses.replace(linear, observations=dataclasses.replace(linear.observations, measured=measured))


def test_errors_left_out_are_larger_than_fitted_ones(fitted):
    linear, free = fitted.linear, free_of(fitted)
    noise = linear.observations.noise
    left_out, seen = left_out_errors(linear, free, "model"), solve(linear, free).log_errors
    assert np.square(pseudo_huber(left_out / noise)).sum() > np.square(pseudo_huber(seen / noise)).sum()


def test_a_single_unit_cannot_be_left_out(fitted):
    assert np.isnan(left_out_errors(fitted.linear, free_of(fitted), "gpu")).all()
    assert "accelerator" not in evidence_of(fitted, {}).errors


def test_evidence_holds_what_the_fit_saw(fitted):
    evidence = evidence_of(fitted, {"runs.json": "00"})
    assert evidence.models == ("olmoe-1b-7b", "qwen1.5-moe-a2.7b")
    assert evidence.concurrency == (1, 8)
    assert evidence.rows == len(fitted.linear.observations.index)
    errors = left_out_errors(fitted.linear, free_of(fitted), "series")
    level = error_level(fitted.linear.observations, errors)
    inside = np.abs(errors) <= max(level.ttft, level.token, level.throughput)
    assert inside.mean() >= 0.9


def test_folds_read_back_and_predict_a_row_without_it(fitted, tmp_path):
    """The constants of the row's own fold are those of the fit without it, and they answer `validate`."""
    linear, free = fitted.linear, free_of(fitted)
    observations = linear.observations
    folds = row_folds(observations, "configuration")
    shipped = select_parameters(get_hardware("a100-80gb")).name
    made = {
        fold: apply_estimates(prior(), linear.columns, solve(linear, free, folds != fold))
        for fold in sorted(set(folds.tolist()))
    }
    units = assign_folds(observations.runs, "configuration")
    write_folds(tmp_path, "configuration", {shipped: (units, made)}, {"a/b/c.parquet": {"gemm": [{"x": 1.5}]}})
    again = read_folds(tmp_path)
    assert again.index.sets[shipped] == SetFolds(
        units=units, files={str(fold): f"{shipped}.fold{fold}.yaml" for fold in made}
    )
    assert again.kernel_constants("a/b/c.parquet", "gemm") == [{"x": 1.5}]
    run = observations.runs[0]
    own = made[units[unit_of(run, "configuration")]]
    for name in TRUTH:
        assert again.parameters_of(run)[name] == pytest.approx(own[name], rel=1e-7)
    _, rows = predict_run(run, again.parameters_of(run))
    token = next(row for row in rows if row.metric == "itl_p50_ms")
    assert token.measured / token.predicted > 3
    assert not token.in_fit
    stranger = msgspec.structs.replace(run, configuration="never seen")
    assert again.parameters_of(stranger) is None


def test_an_unfinished_folder_is_no_folder_of_folds(tmp_path):
    with pytest.raises(InputError, match="holds no folds"):
        read_folds(tmp_path)
    assert fitted_rows("no-such-set") == frozenset()
