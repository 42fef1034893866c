"""Least squares in log space: positive constants, data-sheet priors, a robust loss, and honest standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import InputError

FloatArray = NDArray[np.float64]
Predict = Callable[[Mapping[str, float]], FloatArray]
_IDENTIFIED = 0.5
_DIFFERENCE = 1e-3
_AT_BOUND = 1e-3


@dataclass(frozen=True, slots=True)
class FreeParameter:
    """A positive constant to be fitted: log-normal prior (`prior`, `log_sd`) and hard bounds."""

    name: str
    prior: float
    log_sd: float
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A fitted constant. `log_sd`: standard error of its logarithm; `prior_only`: the data did not move its doubt."""

    name: str
    value: float
    log_sd: float
    prior: float
    prior_log_sd: float
    at_bound: bool
    prior_only: bool


@dataclass(frozen=True, slots=True)
class FitResult:
    """`correlation` [parameters, parameters]; `log_errors` [data]: log(predicted / measured) at the estimates.

    `scale`: robust size of the standardised residuals; standard errors are widened by it when above 1.
    """

    estimates: tuple[Estimate, ...]
    correlation: FloatArray
    log_errors: FloatArray
    scale: float
    converged: bool
    evaluations: int

    @property
    def values(self) -> dict[str, float]:
        """Estimates by name."""
        return {item.name: item.value for item in self.estimates}


def fit(
    free: Sequence[FreeParameter],
    predict: Predict,
    measured: ArrayLike,
    noise: ArrayLike = 0.03,
    *,
    robust: bool = True,
    max_evaluations: int = 60,
    jacobian: Callable[[Mapping[str, float]], FloatArray] | None = None,
    effective_share: float = 1.0,
) -> FitResult:
    """Find the constants that explain `measured`.

    Minimises the sum of pseudo-Huber losses of log(predicted / measured) / noise and of squared, standardised
    deviations of log(parameter) from its prior. Standard errors are the inverse of the information of data and
    priors at the optimum (Gauss-Newton), the data's part divided by the squared robust scale of its residuals.

    Args:
        free: constants to fit.
        predict: all predictions [data] from the constants by name.
        measured: positive values [data].
        noise: standard deviation of the logarithm of a measurement, one or [data].
        robust: bound the pull of outliers (false: plain least squares).
        jacobian: d log(predicted) / d log(parameter) [data, parameters]; finite differences when left out.
        effective_share: independent share of the data (repeats of one sweep share their errors).

    Raises:
        InputError: a measurement or a first prediction is not a positive finite number.
    """
    from scipy.optimize import least_squares

    target = _logarithms(np.asarray(measured, dtype=float), "measured value")
    sigma = np.broadcast_to(np.asarray(noise, dtype=float), target.shape)
    start = np.log([_inside(item) for item in free])
    names = [item.name for item in free]
    prior = np.log([item.prior for item in free])
    prior_sd = np.array([item.log_sd for item in free])
    _logarithms(predict(_named(names, start)), "prediction")

    def standardised(point: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.nan_to_num(
                (np.log(predict(_named(names, point))) - target) / sigma, nan=1e3, posinf=1e3, neginf=-1e3
            )

    def residuals(point: FloatArray) -> FloatArray:
        data = standardised(point)
        return np.concatenate([pseudo_huber(data) if robust else data, (point - prior) / prior_sd])

    def slopes(point: FloatArray) -> FloatArray:
        data = standardised(point)
        inner = jacobian(_named(names, point)) / sigma[:, None] if jacobian else _differences(standardised, point, data)
        outer = _pseudo_huber_slope(data) if robust else np.ones_like(data)
        return np.vstack([outer[:, None] * inner, np.diag(1 / prior_sd)])

    low, high = np.log([max(item.low, 1e-300) for item in free]), np.log([min(item.high, 1e300) for item in free])
    found = least_squares(
        residuals, np.clip(start, low + 1e-9, high - 1e-9), jac=cast("Any", slopes), bounds=(low, high),
        x_scale=prior_sd, xtol=1e-10, ftol=1e-10, max_nfev=max_evaluations,
    )  # fmt: skip
    data = standardised(found.x)
    scale = float(1.4826 * np.median(np.abs(data))) if len(data) else 1.0
    covariance = _covariance(slopes(found.x)[: len(data)], prior_sd, max(scale, 1.0), effective_share)
    return FitResult(
        estimates=_estimates(free, found.x, covariance, low, high),
        correlation=_correlation(covariance),
        log_errors=data * sigma,
        scale=scale,
        converged=bool(found.success),
        evaluations=int(found.nfev),
    )


def _named(names: Sequence[str], point: FloatArray) -> dict[str, float]:
    return dict(zip(names, np.exp(point).tolist(), strict=True))


def _inside(item: FreeParameter) -> float:
    return min(max(item.prior, item.low), item.high)


def _logarithms(values: FloatArray, what: str) -> FloatArray:
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        raise InputError(f"fit: {what} {bad[0]} is {values[bad[0]]}, must be a positive finite number")
    return np.log(values)


def pseudo_huber(standardised: FloatArray) -> FloatArray:
    """Signed square root of the pseudo-Huber loss with corner at 2 standard deviations."""
    corner = 2.0
    loss = 2 * corner**2 * (np.sqrt(1 + (standardised / corner) ** 2) - 1)
    return np.sign(standardised) * np.sqrt(loss)


def _pseudo_huber_slope(standardised: FloatArray) -> FloatArray:
    root = np.abs(pseudo_huber(standardised))
    slope = np.abs(standardised) / np.sqrt(1 + (standardised / 2.0) ** 2)
    return np.divide(slope, root, out=np.ones_like(root), where=root > 1e-12)


def _differences(function: Callable[[FloatArray], FloatArray], point: FloatArray, base: FloatArray) -> FloatArray:
    columns = [(function(point + step) - base) / _DIFFERENCE for step in np.eye(len(point)) * _DIFFERENCE]
    return np.stack(columns, axis=1)


def _covariance(data_slopes: FloatArray, prior_sd: FloatArray, scale: float, share: float) -> FloatArray:
    information = data_slopes.T @ data_slopes * share / scale**2 + np.diag(1 / prior_sd**2)
    return np.asarray(np.linalg.inv(information), dtype=np.float64)


def _correlation(covariance: FloatArray) -> FloatArray:
    deviation = np.sqrt(np.diag(covariance))
    return covariance / np.outer(deviation, deviation)


def _estimates(
    free: Sequence[FreeParameter], point: FloatArray, covariance: FloatArray, low: FloatArray, high: FloatArray
) -> tuple[Estimate, ...]:
    deviations = np.sqrt(np.diag(covariance))
    return tuple(
        Estimate(
            name=item.name,
            value=float(np.exp(point[index])),
            log_sd=float(deviations[index]),
            prior=item.prior,
            prior_log_sd=item.log_sd,
            at_bound=bool(min(point[index] - low[index], high[index] - point[index]) < _AT_BOUND),
            prior_only=bool(deviations[index] > _IDENTIFIED * 1.8 * item.log_sd),
        )
        for index, item in enumerate(free)
    )
