"""One kernel: bytes and FLOPs against achieved rates, with a smooth corner and a fixed time."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from moesim.costs.gemm import KernelParts
from moesim.specs.hardware import Accelerator, peak_rate
from moesim.specs.parameters import ParameterSet

FloatArray = NDArray[np.float64]
LIMITS = ("memory", "compute", "network", "launch")


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """Time of an operator split by what it waits for; all arrays have one shape (one entry a step).

    `memory_s`, `compute_s`, `network_s` and `launch_s` sum to the operator's seconds. `launches` is the number
    of kernels the host starts for it.
    """

    memory_s: FloatArray
    compute_s: FloatArray
    network_s: FloatArray
    launch_s: FloatArray
    hbm_bytes: FloatArray
    flops: FloatArray
    launches: float

    @property
    def seconds(self) -> FloatArray:
        """GPU time."""
        return self.memory_s + self.compute_s + self.network_s + self.launch_s

    def __add__(self, other: OperatorCost) -> OperatorCost:
        return OperatorCost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def at(self, step: int) -> OperatorCost:
        """One of the steps, as arrays of one entry."""
        arrays = {f.name: getattr(self, f.name)[step : step + 1] for f in fields(self) if f.name != "launches"}
        return replace(self, **arrays)

    def slowed(self, factor: float | FloatArray) -> OperatorCost:
        """The same work, `factor` times as long (one, or one a step)."""
        return replace(
            self,
            memory_s=self.memory_s * factor,
            compute_s=self.compute_s * factor,
            network_s=self.network_s * factor,
            launch_s=self.launch_s * factor,
        )

    def times(self, count: float) -> OperatorCost:
        """The operator run `count` times in a row."""
        return OperatorCost(*(getattr(self, f.name) * count for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Rates:
    """Achieved rates of one accelerator under one parameter set."""

    accelerator: Accelerator
    parameters: ParameterSet

    def kernel(
        self, family: str, hbm_bytes: FloatArray, flops: FloatArray, compute: str = "bf16", launches: float = 1.0
    ) -> OperatorCost:
        """Cost of a kernel of `family` (attention, elementwise).

        t = launches * kernel_s + (m^p + c^p)^(1/p) with m = bytes / (efficiency * peak bandwidth),
        c = FLOPs / (efficiency * peak rate of the compute format) and p = roofline_sharpness.
        """
        memory = hbm_bytes / self.bytes_per_s(family)
        arithmetic = flops / self.flops_per_s(family, compute)
        p = self.parameters["roofline_sharpness"]
        top = np.maximum(np.maximum(memory, arithmetic), 1e-30)
        m_power, c_power = (memory / top) ** p, (arithmetic / top) ** p
        seconds = top * (m_power + c_power) ** (1 / p)
        share = m_power / (m_power + c_power + 1e-300)
        start = np.full_like(seconds, launches * self.parameters["kernel_s"])
        zero = np.zeros_like(seconds)
        return OperatorCost(
            seconds * share, seconds * (1 - share), zero, start, hbm_bytes + zero, flops + zero, launches
        )

    def bytes_per_s(self, family: str) -> float:
        """Achieved HBM bandwidth of a kernel family."""
        return self.accelerator.hbm_bandwidth_bytes_per_s * self.parameters[f"{family}_hbm_efficiency"]

    def flops_per_s(self, family: str, compute: str) -> float:
        """Achieved matrix rate of a kernel family (elementwise kernels count no FLOPs)."""
        if family == "elementwise":
            return float("inf")
        return peak_rate(self.accelerator, compute) * self.parameters[f"{family}_compute_efficiency"]


def from_parts(parts: KernelParts, launches: float) -> OperatorCost:
    """A kernel's parts as an operator that the host starts with `launches` launches."""
    zero = np.zeros_like(parts.fixed_s)
    return OperatorCost(
        parts.memory_s, parts.compute_s, zero, parts.fixed_s, parts.hbm_bytes, parts.flops, launches
    )  # fmt: skip


def transfer(seconds: FloatArray, launches: float = 1.0) -> OperatorCost:
    """A collective that takes `seconds`."""
    zero = np.zeros_like(seconds)
    return OperatorCost(zero, zero, seconds, zero, zero, zero, launches)


def nothing(like: FloatArray) -> OperatorCost:
    """An operator that is not there."""
    zero = np.zeros_like(like)
    return OperatorCost(zero, zero, zero, zero, zero, zero, 0.0)
