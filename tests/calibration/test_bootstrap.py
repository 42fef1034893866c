"""Resampled errors: those of the Jacobian where rows are independent, larger where series share errors."""

import dataclasses

import msgspec
import numpy as np
import pytest

from calibration.bootstrap import bootstrap_errors
from calibration.fitting import FreeParameter
from calibration.run_fit import Column, Linearisation, Observations, RunFit, solve
from tests.calibration.synthetic import planned_runs, prior

SERIES, EACH = 40, 6


def linear_fit(shared: float, rng: np.random.Generator) -> RunFit:
    """log y = log a + x log b over 40 series of six rows; `shared`: error that a whole series has in common."""
    (template,) = planned_runs(models=("olmoe-1b-7b",), concurrency=(1,), eager=(False,), metrics=("itl_p50_ms",))
    runs = tuple(msgspec.structs.replace(template, id=str(n), series=str(n)) for n in range(SERIES))
    index = tuple((run, "itl_p50_ms") for run in range(SERIES) for _ in range(EACH))
    x = np.repeat(rng.uniform(-1, 1, SERIES), EACH)
    slopes = np.stack([np.ones(len(x)), x, np.zeros(len(x))], axis=1)
    error = 0.05 * rng.standard_normal(len(x)) + shared * np.repeat(rng.standard_normal(SERIES), EACH)
    observations = Observations(runs, index, np.exp(0.3 + 0.2 * x + error), np.full(len(x), 0.05))
    columns = tuple(Column(name) for name in ("gemm_slowdown", "kernel_s", "host_step_s"))
    linear = Linearisation(observations, columns, np.zeros(len(x)), slopes, np.zeros(3))
    free = [FreeParameter(column.name, 1.0, 0.5) for column in columns]
    return RunFit(prior(), solve(linear, free), linear)


def test_independent_rows_give_the_jacobians_errors():
    fit = linear_fit(0.0, np.random.default_rng(0))
    found = bootstrap_errors(fit, 100, np.random.default_rng(1))
    for item in fit.result.estimates:
        assert found[item.name] == pytest.approx(item.log_sd, rel=0.35), item.name


def test_errors_that_series_share_show_only_in_the_bootstrap():
    """Six rows of one series with a common error of 15 % are worth one row: the Jacobian counts them as six."""
    fit = linear_fit(0.15, np.random.default_rng(2))
    found = bootstrap_errors(fit, 100, np.random.default_rng(3))
    first = fit.result.estimates[0]
    assert found[first.name] > 1.4 * first.log_sd
    assert 0.9 < found[first.name] / (0.15 / np.sqrt(SERIES)) < 1.9


def test_a_constant_without_data_keeps_its_priors_doubt():
    fit = linear_fit(0.0, np.random.default_rng(4))
    assert bootstrap_errors(fit, 100, np.random.default_rng(5))["host_step_s"] == pytest.approx(0.5, rel=0.3)


def test_the_same_seed_gives_the_same_errors():
    fit = dataclasses.replace(linear_fit(0.0, np.random.default_rng(6)))
    one, other = (bootstrap_errors(fit, 5, np.random.default_rng(7)) for _ in range(2))
    assert one == other
