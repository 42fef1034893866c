"""Why the winner wins, in sentences a person can check against the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from moesim.metrics.result import SimulationResult
from moesim.planner.recommendation import Candidate


def explain(
    leading: Sequence[Candidate], ranked: Sequence[Candidate], ttft_slo_ms: float | None, tpot_slo_ms: float | None
) -> tuple[str, ...]:
    """Sentences on the winner: what it gives, what limits it, the next best strategy and the next depth."""
    best = leading[0]
    sentences = [_headline(best), _limit(best.predicted)]
    if not best.meets_slo:
        limits = [
            f"p90 TTFT {ttft_slo_ms:g} ms" if ttft_slo_ms else "",
            f"p90 TPOT {tpot_slo_ms:g} ms" if tpot_slo_ms else "",
        ]
        sentences.insert(0, f"No deployment meets {' and '.join(part for part in limits if part)}.")
    other = next((item for item in ranked if _shape(item) != _shape(best)), None)
    if other is not None:
        sentences.append(_against(best, other))
    sentences.extend(_depth(best, ranked))
    return tuple(sentences)


def _shape(item: Candidate) -> tuple[int, int, int]:
    deployment = item.deployment
    return deployment.tensor_parallel_size, deployment.data_parallel_size, deployment.expert_parallel_size


def _name(item: Candidate) -> str:
    tp, dp, ep = _shape(item)
    return f"{item.deployment.strategy} (tp {tp}, dp {dp}, ep {ep}) at max_num_seqs {item.deployment.max_num_seqs}"


def _headline(best: Candidate) -> str:
    result = best.predicted
    latency = f"p50 TPOT {result.tpot_ms.p50:.1f} ms" if result.tpot_ms else "no TPOT (one token a request)"
    first = f"p50 TTFT {result.ttft_ms.p50:.0f} ms, " if result.ttft_ms else ""
    return f"{_name(best)} gives {result.output_tokens_per_s:,.0f} output tokens/s with {first}{latency}."


def _limit(result: SimulationResult) -> str:
    total = result.breakdown.total_s or 1.0
    top = sorted(result.breakdown.operators.items(), key=lambda item: -item[1])[:3]
    parts = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in top)
    return f"It is limited by {result.breakdown.limited_by}; most of a step goes to {parts}."


def _against(best: Candidate, other: Candidate) -> str:
    """Name the operator that makes the difference, in seconds per output token of one GPU."""
    gain = best.predicted.output_tokens_per_s / other.predicted.output_tokens_per_s
    mine, theirs = _per_token_us(best), _per_token_us(other)
    names = set(mine) | set(theirs)
    gap = {name: theirs.get(name, 0.0) - mine.get(name, 0.0) for name in names}
    cause = max(gap, key=lambda name: abs(gap[name]))
    return (
        f"The next best strategy is {_name(other)} with {other.predicted.output_tokens_per_s:,.0f} output tokens/s "
        f"({gain:.2f}x less); the largest difference is {cause}: {mine.get(cause, 0.0):.1f} against "
        f"{theirs.get(cause, 0.0):.1f} GPU-microseconds per output token."
    )


def _per_token_us(item: Candidate) -> dict[str, float]:
    result = item.predicted
    tokens = result.output_tokens_per_s * result.duration_s
    engines = item.deployment.num_engines
    scale = result.num_gpus / engines / tokens * 1e6
    return {name: seconds * scale for name, seconds in result.breakdown.operators.items()}


def _depth(best: Candidate, ranked: Sequence[Candidate]) -> list[str]:
    """What one step deeper or shallower would change."""
    same = sorted(
        (item for item in ranked if _shape(item) == _shape(best)), key=lambda item: item.deployment.max_num_seqs
    )
    index = next(i for i, item in enumerate(same) if item.deployment.max_num_seqs == best.deployment.max_num_seqs)
    sentences: list[str] = []
    for offset, word in ((1, "Deeper"), (-1, "Shallower")):
        if 0 <= index + offset < len(same):
            sentences.append(_depth_sentence(best, same[index + offset], word))
    return sentences


def _depth_sentence(best: Candidate, other: Candidate, word: str) -> str:
    ratio = other.predicted.output_tokens_per_s / best.predicted.output_tokens_per_s - 1
    mine, theirs = best.predicted.tpot_ms, other.predicted.tpot_ms
    change = f", p90 TPOT {mine.p90:.1f} -> {theirs.p90:.1f} ms" if mine and theirs else ""
    missed = "" if other.meets_slo else " and misses the limits"
    return f"{word} (max_num_seqs {other.deployment.max_num_seqs}): {ratio:+.1%} throughput{change}{missed}."
