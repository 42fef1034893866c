"""What unevenness chance alone gives: the Gini of uniform routing with as many tokens, and intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.routing.imbalance import gini
from moesim.routing.profile import RoutingProfile

FloatArray = NDArray[np.float64]
_EXACT_TOKENS = 200_000
_SIGNIFICANT = 0.01
_RESAMPLES = 200


def expected_uniform_gini(num_tokens: int, num_experts: int, top_k: int) -> float:
    """Mean Gini of one layer's counts when every token chooses `top_k` distinct experts uniformly.

    The Gini is the mean absolute difference of two experts' counts over twice the mean count. That difference is a
    symmetric walk: a token moves it by one way or the other with probability q = (k/E) (E - k)/(E - 1) each. Its
    mean distance is summed exactly over the number of moves up to 200,000 tokens; beyond, sqrt(4 q n / pi).
    """
    if num_tokens <= 0 or num_experts < 2 or top_k >= num_experts:
        return 0.0
    q = top_k / num_experts * (num_experts - top_k) / (num_experts - 1)
    mean = num_tokens * top_k / num_experts
    distance = _mean_distance(num_tokens, 2 * q)
    return float((num_experts - 1) / num_experts * distance / (2 * mean))


def _mean_distance(steps: int, move: float) -> float:
    """E|S| of a walk of `steps` steps that each move by +1 or -1 with probability move / 2."""
    if steps > _EXACT_TOKENS:
        return float(np.sqrt(2 * steps * move / np.pi))
    from scipy.special import gammaln
    from scipy.stats import binom

    spread = 10 * np.sqrt(steps * move * (1 - move)) + 10
    low, high = max(int(steps * move - spread), 1), min(int(steps * move + spread) + 1, steps)
    moves = np.arange(low, high + 1)
    half = (moves - 1) // 2
    log_choose = gammaln(moves) - gammaln(half + 1) - gammaln(moves - half)
    distance = moves * np.exp(log_choose - (moves - 1) * np.log(2.0))
    return float((binom.pmf(moves, steps, move) * distance).sum())


@dataclass(frozen=True, slots=True)
class Significance:
    """A layer's Gini against chance: expected under uniform routing, p-value, and a 90 % bootstrap interval."""

    gini_expected_uniform: float | None
    p_value: float | None
    interval_90: tuple[float, float]

    @property
    def significant(self) -> bool | None:
        """Whether the layer is more uneven than uniform routing, at the 1 % level (None for weights)."""
        return None if self.p_value is None else self.p_value < _SIGNIFICANT


def layer_significance(profile: RoutingProfile, layer: int, top_k: int, rng: np.random.Generator) -> Significance:
    """Test one layer of the profile against uniform routing of tokens that choose independently of each other.

    p-value: chi-square of the counts, its variance that of `top_k` draws without replacement. The interval
    resamples steps where the profile has eight or more (their tokens depend on each other), otherwise tokens.
    Tokens of one text are alike, so a significant excess may belong to the text rather than to the model.
    """
    counts = profile.counts[:, layer]
    total = counts.sum(axis=0)
    if not profile.is_counted:
        value = float(gini(total))
        return Significance(None, None, (value, value))
    from scipy.stats import chi2

    experts = len(total)
    tokens = round(float(total.sum()) / top_k)
    mean = float(total.mean())
    thinning = max((experts - top_k) / (experts - 1), 1e-9) if experts > 1 else 1.0
    statistic = float(((total - mean) ** 2).sum() / mean / thinning)
    return Significance(
        expected_uniform_gini(tokens, experts, top_k),
        float(chi2.sf(statistic, experts - 1)) if experts > 1 else 1.0,
        _bootstrap(counts, rng),
    )


def _bootstrap(counts: FloatArray, rng: np.random.Generator) -> tuple[float, float]:
    """90 % interval of the Gini of the summed counts [steps, experts]; basic bootstrap, within [0, 1].

    Resampling adds its own noise on top of the sample's, so the resampled Gini lies too high; the basic form
    reflects the quantiles at the estimate, which corrects that.
    """
    total = counts.sum(axis=0)
    if len(counts) >= 8:
        picks = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=_RESAMPLES)
        drawn = gini(picks @ counts)
    else:
        drawn = gini(rng.multinomial(int(total.sum()), total / total.sum(), size=_RESAMPLES).astype(float))
    value = float(gini(total))
    low, high = np.quantile(drawn, (0.05, 0.95))
    return max(2 * value - float(high), 0.0), min(max(2 * value - float(low), 0.0), 1.0)
