"""Whether a recorded loop ran undisturbed, judged by its own steps and gaps and by no model.

What disturbs is compilation of kernels at shapes that a warm-up did not meet, and a host that does other things.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from calibration.schema import Measurement

FloatArray = NDArray[np.float64]
_STALL = 2.0
"""A step stalled that lasted more than this many times what others with no less work took."""
_STALLED_SHARE = 0.05
_JITTER = 1.1
"""Steps of one or two callers are equal work: an undisturbed median is within 4 % of the fastest tenth (Mixtral,
Qwen1.5-MoE)."""
_FEW_CALLERS = 2
_WORK = ("prefill_tokens", "prefill_pairs", "decodes", "context_tokens", "gpu_ms")


def flaws_of(item: Measurement) -> tuple[str, ...]:
    """Labels of `calibration.rejection` for a loop whose steps were recorded in the engine's process."""
    if any(name not in item.steps for name in _WORK):
        return ()
    flaws: list[str] = []
    elapsed_s = item.values.get("duration_s", 0.0)
    if stalled_s(item) > _STALLED_SHARE * elapsed_s > 0:
        flaws.append("ttft_stall")
    median_ms, fast_ms = item.values.get("itl_median_ms", 0.0), item.values.get("itl_p10_ms", 0.0)
    few = float(item.request.get("concurrency") or 0) <= _FEW_CALLERS
    if few and item.request.get("frontend") == "offline" and median_ms > _JITTER * fast_ms > 0:
        flaws.append("noisy_host")
    return tuple(flaws)


def stalled_s(item: Measurement) -> float:
    """Seconds that steps with prompts lasted longer than others of the loop bound them.

    A step takes no longer than one with no fewer prompt tokens and one with no fewer decodes after each other.
    """
    tokens, pairs, decodes, context, gpu_ms = (np.array(item.steps[name], dtype=float) for name in _WORK)
    prompts = np.flatnonzero((tokens > 0) & np.isfinite(gpu_ms))
    stalled_ms = 0.0
    for step in prompts.tolist():
        others = prompts[prompts != step]
        bound_ms = _least(gpu_ms[others], (tokens[others] >= tokens[step]) & (pairs[others] >= pairs[step]))
        if decodes[step]:
            bound_ms += _least(gpu_ms, (decodes >= decodes[step]) & (context >= context[step]) & (tokens == 0))
        if gpu_ms[step] > _STALL * bound_ms:
            stalled_ms += float(gpu_ms[step]) - bound_ms
    return stalled_ms / 1e3


def _least(times_ms: FloatArray, chosen: NDArray[np.bool_]) -> float:
    """The shortest of the chosen times; infinite where there is none to compare with."""
    return float(np.nanmin(times_ms[chosen], initial=np.inf))
