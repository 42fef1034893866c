"""Constants from profilers' files: kernel times, launch times and counted bytes as residuals of their own.

A profile seldom says which matrices a kernel multiplied, so only what needs no shapes is used:

- a kernel with counted bytes lasts its start and the bytes at the achieved bandwidth (copies and small kernels at
  any size; products, experts and attention only where they reach two fifths of the peak, so that memory and not
  arithmetic decides);
- a small kernel of an engine step of few tokens is all start;
- a stream that waits for the host between its kernels shows the host's time a launch (graph replays do not).

What is left out: times of products and attention without byte counts, and collectives. Profiling itself slows host
and kernels (a few per cent for kernels, tens of per cent for launches), which the noise of each kind allows for.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.fitting import FitResult, FreeParameter, fit
from calibration.kernel_classes import ATTENTION, COPY, ELEMENTWISE, EXPERTS, OTHER, PRODUCT, class_of
from calibration.profilers.hbm import Traffic, measure_traffic
from calibration.profilers.tables import Kernel, Profile
from moesim.specs.hardware import Accelerator
from moesim.specs.parameters import Correlation, ParameterSet

FloatArray = NDArray[np.float64]
_FEW_TOKENS = 64
_FEWEST_LAUNCHES = 5
_MEMORY_BOUND = 0.4
_KERNEL_NOISE, _START_NOISE, _LAUNCH_NOISE = 0.1, 0.5, 0.5
_EFFICIENCY = {
    COPY: "elementwise_hbm_efficiency",
    ELEMENTWISE: "elementwise_hbm_efficiency",
    OTHER: "elementwise_hbm_efficiency",
    ATTENTION: "attention_hbm_efficiency",
    PRODUCT: "gemm_bf16_hbm_efficiency",
    EXPERTS: "moe_bf16_hbm_efficiency",
}
_ANY_SIZE = {COPY, ELEMENTWISE, OTHER}


@dataclass(frozen=True, slots=True)
class Term:
    """`factor` seconds times a constant to the `power` of 1 (a time) or -1 (an achieved share)."""

    constant: str
    factor: float
    power: int


@dataclass(frozen=True, slots=True)
class Observation:
    """A measured time and the sum of terms that predicts it; `noise`: standard deviation of its logarithm."""

    what: str
    kernel: str
    measured_s: float
    terms: tuple[Term, ...]
    noise: float
    count: int


@dataclass(frozen=True, slots=True)
class ProfileFit:
    """The base set with the constants that the profiles moved, the observations and the solver's result."""

    parameters: ParameterSet
    observations: tuple[Observation, ...]
    result: FitResult


def observe_profile(profile: Profile, accelerator: Accelerator) -> list[Observation]:
    """Everything in a profile that tells a constant without knowing the model that ran."""
    return [*_bandwidths(profile, accelerator), *_starts(profile), *_launches(profile)]


def fit_profiles(base: ParameterSet, observations: Sequence[Observation], source: str) -> ProfileFit:
    """Move the constants that the observations tell about, from the base set's estimates and doubt."""
    names = list(dict.fromkeys(term.constant for item in observations for term in item.terms))
    free = [_free(base, name) for name in names]

    def predict(values: Mapping[str, float]) -> FloatArray:
        return np.array([_seconds(item, values) for item in observations])

    def slopes(values: Mapping[str, float]) -> FloatArray:
        return np.array([_slopes(item, values, names) for item in observations])

    measured = np.array([item.measured_s for item in observations])
    noise = np.array([item.noise for item in observations])
    found = fit(free, predict, measured, noise, jacobian=slopes)
    return ProfileFit(_moved(base, found, source), tuple(observations), found)


def _free(base: ParameterSet, name: str) -> FreeParameter:
    known = base.parameters[name]
    share = name.endswith("_efficiency")
    high = max(1.0, known.value) if share else math.inf
    return FreeParameter(name, known.value, max(known.log_sd, 0.05), low=known.value / 50, high=high)


def _moved(base: ParameterSet, found: FitResult, source: str) -> ParameterSet:
    constants = dict(base.parameters)
    for item in found.estimates:
        known = constants[item.name]
        status = "at_bound" if item.at_bound else "prior_only" if item.prior_only else "fitted"
        constants[item.name] = msgspec.structs.replace(
            known,
            value=item.value,
            log_sd=min(item.log_sd, known.log_sd) if known.log_sd else item.log_sd,
            source=f"fitted: {source}; before: {known.source}"[:300],
            status=status,
        )
    names = tuple(item.name for item in found.estimates)
    rows = tuple(tuple(round(float(value), 4) for value in row) for row in found.correlation)
    correlation = base.correlation if base.correlation.names else Correlation(names=names, rows=rows)
    return msgspec.structs.replace(base, parameters=constants, correlation=correlation)


def _seconds(item: Observation, values: Mapping[str, float]) -> float:
    return sum(term.factor * values[term.constant] ** term.power for term in item.terms)


def _slopes(item: Observation, values: Mapping[str, float], names: Sequence[str]) -> list[float]:
    parts = {term.constant: term.power * term.factor * values[term.constant] ** term.power for term in item.terms}
    whole = _seconds(item, values)
    return [parts.get(name, 0.0) / whole for name in names]


def _bandwidths(profile: Profile, accelerator: Accelerator) -> list[Observation]:
    """One observation a kernel name with counted bytes, at its median dispatch."""
    grouped: dict[str, list[Traffic]] = defaultdict(list)
    for traffic in measure_traffic(profile):
        if traffic.bytes_per_s is not None:
            grouped[traffic.kernel].append(traffic)
    peaks = [device.memory_bytes_per_s for device in profile.devices if device.memory_bytes_per_s]
    peak = peaks[0] if peaks else accelerator.hbm_bandwidth_bytes_per_s
    found: list[Observation] = []
    for name, rows in grouped.items():
        kind = class_of(name)
        seconds = median(row.duration_s or 0.0 for row in rows)
        moved = median(row.total_bytes or 0.0 for row in rows)
        if kind not in _EFFICIENCY or moved <= 0:
            continue
        if kind not in _ANY_SIZE and moved / seconds < _MEMORY_BOUND * peak:
            continue
        terms = (Term("kernel_s", 1.0, 1), Term(_efficiency(kind, name), moved / peak, -1))
        found.append(Observation("achieved bandwidth", name, seconds, terms, _KERNEL_NOISE, len(rows)))
    return found


def _efficiency(kind: str, name: str) -> str:
    return "moe_mxfp4_hbm_efficiency" if kind == EXPERTS and "mxfp4" in name.lower() else _EFFICIENCY[kind]


def _starts(profile: Profile) -> list[Observation]:
    """Small kernels of steps of few tokens; without marked steps only the quickest kernel that ran often."""
    tokens = [step.tokens for step in profile.steps]
    marked = any(count is not None for count in tokens)
    grouped: dict[str, list[float]] = defaultdict(list)
    for kernel in profile.kernels:
        if kernel.duration_s is None or kernel.duration_s <= 0 or class_of(kernel.name) != ELEMENTWISE:
            continue
        count = tokens[kernel.step] if kernel.step is not None and kernel.step < len(tokens) else None
        if not marked or (count is not None and count <= _FEW_TOKENS):
            grouped[kernel.name].append(kernel.duration_s)
    often = {name: times for name, times in grouped.items() if len(times) >= _FEWEST_LAUNCHES}
    if not marked and often:
        name = min(often, key=lambda key: median(often[key]))
        often = {name: often[name]}
    return [
        Observation(
            "start of a small kernel", name, median(times), (Term("kernel_s", 1.0, 1),), _START_NOISE, len(times)
        )
        for name, times in often.items()
    ]


def _launches(profile: Profile) -> list[Observation]:
    """Each device's busiest stream where it waits for the host: the median time from start to start of two kernels.

    Kernels of one graph replay do not count, and collecting counters runs them one at a time, so that such a file
    says nothing about launches.
    """
    if any(counter.dispatch is not None and counter.unit != "%" for counter in profile.counters):
        return []
    found: list[Observation] = []
    streams: dict[tuple[str, str | None], list[Kernel]] = defaultdict(list)
    for kernel in profile.kernels:
        if kernel.start_s is not None and kernel.duration_s is not None and kernel.graph_node is None:
            streams[kernel.device, kernel.stream].append(kernel)
    busiest = {key[0]: key for key in sorted(streams, key=lambda key: len(streams[key]))}
    for device, stream in busiest.values():
        kernels = streams[device, stream]
        kernels.sort(key=lambda kernel: kernel.start_s or 0.0)
        pairs = [(one, other) for one, other in pairwise(kernels) if _launched_apart(one, other)]
        if len(pairs) < _FEWEST_LAUNCHES:
            continue
        apart = median((other.start_s or 0.0) - (one.start_s or 0.0) for one, other in pairs)
        busy = median(one.duration_s or 0.0 for one, _ in pairs)
        if apart > 2 * busy:
            where = f"stream {stream} of {device}"
            terms = (Term("host_launch_s", 1.0, 1),)
            found.append(Observation("time a launch", where, apart, terms, _LAUNCH_NOISE, len(pairs)))
    return found


def _launched_apart(one: Kernel, other: Kernel) -> bool:
    """Not by one replay of a graph (all kernels of which share the launch's correlation), and in one step."""
    same_launch = one.correlation is not None and one.correlation == other.correlation
    return not same_launch and one.step == other.step and one.dispatch != other.dispatch
