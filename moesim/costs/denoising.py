"""The two programs that denoise: what each asks of the host, and which positions it turns into logits.

`reference`: the modelling code that the models were published with, and the loop of their model cards: a module a
projection, norms in float32, and every position's logits at every step. `moesim`: this project's engine
(`hw_validation/llada`): PyTorch operators with a loop over experts, Triton kernels with grouped ones, and the logits
of the present block alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moesim.specs.scenario import DenoisingCode, DiffusionRun

_SMALL = 0.25
"""Views and allocations, in operators: they launch nothing (assumed)."""
_MODULE = 0.5
"""A module's call around its operators (assumed)."""
_WAIT = 3.0
"""The host waits for a count from the GPU: the copy, the GPU's last kernels, and the kernels that found the count.

Derived from the published loop on A100: an expert costs 0.29 to 0.33 of a dense layer (`diffusion.csv`).
"""
_TRITON = 6.0
"""A Triton kernel started from Python binds its arguments there. Derived from our engine's eager forwards on H200:
0.42 to 0.55 ms a layer with six such kernels, which its loop over experts spends on 36 to 47 operators."""

_COLLECTIVE = 4.0
"""A collective that PyTorch launches: 20 to 37 us for small messages on two H100 (`calibration/data/h100x2`), where an
operator takes about 8."""


@dataclass(frozen=True, slots=True)
class HostCalls:
    """Calls from Python: `operators` that start kernels, `small` ones that do not (views, allocations), modules
    around them, waits for an answer of the GPU, Triton kernels, and collectives.
    """

    operators: int
    small: int
    modules: int = 0
    waits: int = 0
    triton: int = 0
    collectives: int = 0

    @property
    def weight(self) -> float:
        """Host time in units of one operator's (`host_eager_op_s`)."""
        beside = _SMALL * self.small + _MODULE * self.modules + _WAIT * self.waits + _TRITON * self.triton
        return self.operators + beside + _COLLECTIVE * self.collectives


@dataclass(frozen=True, slots=True)
class Program:
    """Host calls of a layer (`dense`; `sparse`: a routed one without its experts), of an `expert` (of all, where
    they are grouped), of the `exchange` between ranks around a layer's experts and of a `step` beside its layers;
    `logits`: of which positions; `sampling_kernels` a step.
    """

    dense: HostCalls
    sparse: HostCalls
    expert: HostCalls
    exchange: HostCalls
    step: HostCalls
    logits: Literal["all", "block"]
    sampling_kernels: float


_ALONE = HostCalls(operators=0, small=0)
_REFERENCE = Program(
    dense=HostCalls(operators=45, small=30, modules=15),
    sparse=HostCalls(operators=57, small=35, modules=12),
    expert=HostCalls(operators=10, small=8, modules=5, waits=1),
    exchange=_ALONE,
    step=HostCalls(operators=30, small=10, modules=2, waits=1),
    logits="all",
    sampling_kernels=12.0,
)
"""Read off LLaDA's modelling_llada.py and the OLMoE block that LLaDA-MoE's is a copy of."""

_STEP = HostCalls(operators=26, small=9)
_EXCHANGE = HostCalls(operators=12, small=12, waits=2, collectives=4)
"""Read off `distributed.py`: how many rows travel to which rank (two waits), rows and their experts, results back."""
_LOOPED = Program(
    dense=HostCalls(operators=27, small=23),
    sparse=HostCalls(operators=34, small=27),
    expert=HostCalls(operators=10, small=11, waits=1),
    exchange=_EXCHANGE,
    step=_STEP,
    logits="block",
    sampling_kernels=25.0,
)
_GROUPED = Program(
    dense=HostCalls(operators=5, small=16, triton=4),
    sparse=HostCalls(operators=4, small=17, triton=6),
    expert=HostCalls(operators=0, small=6, triton=2),
    exchange=_EXCHANGE,
    step=_STEP,
    logits="block",
    sampling_kernels=25.0,
)
"""Ours: the loop counted as PyTorch dispatches it (a test counts again), the kernels read off `fused.py`."""

PROGRAMS: dict[tuple[DenoisingCode, str], Program] = {
    ("reference", "loop"): _REFERENCE,
    ("reference", "grouped"): _REFERENCE,
    ("moesim", "loop"): _LOOPED,
    ("moesim", "grouped"): _GROUPED,
}
"""By code and execution of experts."""


def program_of(run: DiffusionRun) -> Program:
    """What `run` is denoised with."""
    return PROGRAMS[run.code, run.expert_execution]
