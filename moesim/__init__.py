"""moesim: how a Mixture-of-Experts model will run on that hardware, before you rent it.

>>> import moesim
>>> result = moesim.simulate(model="mixtral-8x7b", hardware="h200", gpus=8, concurrency=16)
>>> answer = moesim.recommend(model="mixtral-8x7b", hardware="h200", gpus=8)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.metrics.result import SimulationResult
    from moesim.planner.recommendation import Recommendation
    from moesim.planner.steady_state import SteadyState

__all__ = ["InputError", "__version__", "estimate", "recommend", "simulate"]
__version__ = "0.1.0"


def simulate(**words: Any) -> SimulationResult:
    """Predict one deployment under one load.

    Takes the words of `moesim simulate` as keywords (`model`, `hardware`, `gpus`, `tp`, `input_len`,
    `concurrency`, ...: see `moesim.scenarios.Request`). Raises InputError for bad input.
    """
    from moesim.simulation import simulate_scenario
    from moesim.words import to_scenario

    return simulate_scenario(to_scenario(words))


def recommend(
    *, objective: str = "throughput", ttft_slo: float | None = None, tpot_slo: float | None = None, **words: Any
) -> Recommendation:
    """Rank all deployments that fit; limits are p90 in milliseconds. Other keywords as in `simulate`."""
    from moesim.planner.search import Goal, recommend_scenario
    from moesim.scenarios import make_planning_scenario
    from moesim.words import to_request

    return recommend_scenario(make_planning_scenario(to_request(words)), Goal(objective, ttft_slo, tpot_slo))


def estimate(*, batch: int = 16, **words: Any) -> SteadyState:
    """One step and one steady state in closed form. Other keywords as in `simulate`."""
    from moesim.planner.steady_state import steady_state
    from moesim.words import to_scenario

    return steady_state(to_scenario(words), batch)
