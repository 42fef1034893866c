"""The fit finds constants that are known, says how sure it is and is right about it, and names what it did not find."""

import numpy as np
import pytest

from calibration.fitting import FreeParameter, fit
from moesim.errors import InputError

SIZES = np.geomspace(1e3, 1e9, 60)
START_S, BANDWIDTH = 5e-6, 1.5e12


def seconds(values):
    """A kernel: a fixed start and a bandwidth."""
    return values["start_s"] + SIZES / values["bandwidth"]


def free(log_sd=2.0):
    return [FreeParameter("start_s", 2e-5, log_sd), FreeParameter("bandwidth", 4e11, log_sd)]


def test_exact_rows_give_exact_constants():
    found = fit(free(), seconds, seconds({"start_s": START_S, "bandwidth": BANDWIDTH}), noise=0.01)
    assert found.values["start_s"] == pytest.approx(START_S, rel=1e-4)
    assert found.values["bandwidth"] == pytest.approx(BANDWIDTH, rel=1e-4)
    assert found.converged
    assert not any(item.at_bound or item.prior_only for item in found.estimates)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """200 synthetic sweeps with 5 % noise: 90 % intervals hold the true constants in 85 to 96 % of them."""
    rng = np.random.default_rng(3)
    true = {"start_s": START_S, "bandwidth": BANDWIDTH}
    inside = []
    for _ in range(200):
        found = fit(free(), seconds, seconds(true) * np.exp(0.05 * rng.standard_normal(60)), noise=0.05)
        inside += [abs(np.log(item.value / true[item.name])) < 1.645 * item.log_sd for item in found.estimates]
    assert 0.85 < np.mean(inside) < 0.96


def test_understated_noise_widens_the_errors_by_what_the_residuals_show():
    """Rows that scatter by 15 % though 5 % was said: errors as large as with 15 % said."""
    rng = np.random.default_rng(4)
    measured = seconds({"start_s": START_S, "bandwidth": BANDWIDTH}) * np.exp(0.15 * rng.standard_normal(60))
    small = fit(free(), seconds, measured, noise=0.05, robust=False)
    honest = fit(free(), seconds, measured, noise=0.15, robust=False)
    assert small.scale == pytest.approx(3.0, rel=0.35)
    for one, other in zip(small.estimates, honest.estimates, strict=True):
        assert one.log_sd == pytest.approx(other.log_sd, rel=0.35)


def test_a_tenth_of_wild_rows_hardly_moves_a_robust_fit():
    rng = np.random.default_rng(5)
    measured = seconds({"start_s": START_S, "bandwidth": BANDWIDTH}) * np.exp(0.03 * rng.standard_normal(60))
    measured[rng.permutation(60)[:6]] *= 4.0
    robust = fit(free(), seconds, measured, noise=0.03).values
    plain = fit(free(), seconds, measured, noise=0.03, robust=False).values
    assert robust["bandwidth"] == pytest.approx(BANDWIDTH, rel=0.04)
    assert robust["start_s"] == pytest.approx(START_S, rel=0.04)
    assert abs(np.log(plain["start_s"] / START_S)) > 3 * abs(np.log(robust["start_s"] / START_S))


def test_constants_that_no_row_asks_for_keep_their_prior_and_say_so():
    found = fit([*free(), FreeParameter("unused", 7.0, 0.4)], seconds, seconds({"start_s": 5e-6, "bandwidth": 1e12}))
    unused = found.estimates[2]
    assert unused.prior_only
    assert unused.value == pytest.approx(7.0)
    assert unused.log_sd == pytest.approx(0.4, rel=1e-3)


def test_a_constant_stopped_by_its_bound_says_so():
    capped = [FreeParameter("start_s", 2e-5, 2.0), FreeParameter("bandwidth", 4e11, 2.0, high=1e12)]
    found = fit(capped, seconds, seconds({"start_s": START_S, "bandwidth": BANDWIDTH}))
    assert [item.at_bound for item in found.estimates] == [False, True]
    assert found.values["bandwidth"] == pytest.approx(1e12, rel=2e-3)


def test_two_constants_seen_only_as_a_product_are_fully_correlated():
    both = [FreeParameter("one", 1.0, 3.0), FreeParameter("other", 1.0, 3.0)]
    found = fit(both, lambda values: SIZES * values["one"] * values["other"], SIZES * 4.0, noise=0.01)
    assert found.correlation[0, 1] == pytest.approx(-1.0, abs=1e-3)
    assert found.values["one"] * found.values["other"] == pytest.approx(4.0, rel=1e-3)


def test_a_given_jacobian_answers_as_finite_differences_do():
    true = {"start_s": START_S, "bandwidth": BANDWIDTH}
    measured = seconds(true) * np.exp(0.03 * np.random.default_rng(6).standard_normal(60))

    def slopes(values):
        whole = seconds(values)
        return np.stack([values["start_s"] / whole, -SIZES / values["bandwidth"] / whole], axis=1)

    one, other = fit(free(), seconds, measured), fit(free(), seconds, measured, jacobian=slopes)
    assert one.values == pytest.approx(other.values, rel=1e-5)


def test_repeated_rows_count_by_their_independent_share():
    """Each row four times, a quarter of them independent: the errors of the rows taken once."""
    rng = np.random.default_rng(7)
    true = seconds({"start_s": START_S, "bandwidth": BANDWIDTH}) * np.exp(0.03 * rng.standard_normal(60))
    once = fit(free(), seconds, true, noise=0.05)
    often = fit(free(), lambda v: np.tile(seconds(v), 4), np.tile(true, 4), noise=0.05, effective_share=0.25)
    for one, other in zip(once.estimates, often.estimates, strict=True):
        assert other.log_sd == pytest.approx(one.log_sd, rel=0.02)


NORRIS_X = np.fromstring(
    "0.2 337.4 118.2 884.6 10.1 226.5 666.3 996.3 448.6 777.0 558.2 0.4 0.6 775.5 666.9 338.0 447.5 11.6 556.0 228.1 "
    "995.8 887.6 120.2 0.3 0.3 556.8 339.1 887.2 999.0 779.0 11.1 118.3 229.2 669.1 448.9 0.5",
    sep=" ",
)
NORRIS_Y = np.fromstring(
    "0.1 338.8 118.1 888.0 9.2 228.1 668.5 998.5 449.1 778.9 559.2 0.3 0.1 778.1 668.8 339.3 448.9 10.8 557.7 228.3 "
    "998.0 888.8 119.6 0.3 0.6 557.6 339.3 888.0 998.5 778.9 10.2 117.6 228.9 668.4 449.2 0.2",
    sep=" ",
)


def test_certified_values_of_nist_norris():
    """NIST StRD "Norris", a line y = b0 + b1 x, is a power of exponentials here: exp(y / 100) = p0 * p1 ** x."""
    b0, b1 = -0.262323073774029, 1.00211681802045
    sd0, sd1, residual = 0.232818234301152, 0.429796848199937e-3, 0.884796396144373

    def predict(values):
        return values["p0"] * values["p1"] ** NORRIS_X

    wide = [FreeParameter("p0", 1.0, 1e3), FreeParameter("p1", 1.0, 1e3)]
    found = fit(wide, predict, np.exp(NORRIS_Y / 100), noise=residual / 100, robust=False)
    first, second = found.estimates
    assert 100 * np.log(first.value) == pytest.approx(b0, rel=1e-6)
    assert 100 * np.log(second.value) == pytest.approx(b1, rel=1e-8)
    assert 100 * first.log_sd == pytest.approx(sd0 * max(found.scale, 1.0), rel=1e-4)
    assert 100 * second.log_sd == pytest.approx(sd1 * max(found.scale, 1.0), rel=1e-4)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_values_without_a_logarithm_are_refused_by_number(bad):
    measured = seconds({"start_s": START_S, "bandwidth": BANDWIDTH})
    measured[17] = bad
    with pytest.raises(InputError, match="measured value 17"):
        fit(free(), seconds, measured)
