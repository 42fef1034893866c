"""The light predictor: a random forest that answers "which strategy, how deep a queue" in milliseconds, on a CPU.

It learns throughput and time per token of measured and simulated points (`calibration.strategy_table`), both in units
of reading the active weights once, so that what it learns carries over to other models. Nothing is unpickled: the
forest is fitted to the committed table on first use, with a fixed seed, in about a second. It is judged on models
that it has not seen, by regret: the share of throughput lost against the best choice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.strategy_table import (
    MEASURED,
    SIMULATED,
    Choice,
    Point,
    Question,
    features,
    read_points,
    reading_s,
    targets,
)

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestRegressor

FloatArray = NDArray[np.float64]
_TREES = 40
_MEASURED_WEIGHT = 3.0
TPOT_LIMIT = 2.0
"""The queue-depth task: as much throughput as possible at no more than twice the question's least time per token."""
_TOLERANCE = 1.05
"""A limit counts as broken beyond what repeats of one run differ by."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """A choice with its predicted throughput and time per token."""

    choice: Choice
    tokens_per_s: float
    tpot_ms: float


@dataclass(frozen=True, slots=True)
class Regret:
    """Share of throughput lost against the best choice, over questions of models left out.

    `task`: strategy (at a given number of sequences) or queue depth (with strategy, under the limit on the time per
    token). `violations`: share of depth answers whose own time per token broke the limit (their regret is 1).
    """

    task: str
    source: str
    chooser: str
    questions: int
    mean: float
    p90: float
    best_found: float
    violations: float | None


def train(points: Sequence[Point]) -> RandomForestRegressor:
    """A forest of 40 trees on the points; measured ones weigh three times as much. Same points, same forest."""
    from sklearn.ensemble import RandomForestRegressor

    forest = RandomForestRegressor(n_estimators=_TREES, min_samples_leaf=2, max_features=0.6, random_state=0, n_jobs=1)
    weights = [_MEASURED_WEIGHT if point.source == "measured" else 1.0 for point in points]
    forest.fit([features(point.question, point.choice) for point in points], targets(points), sample_weight=weights)
    return forest


@lru_cache(maxsize=1)
def shipped_forest() -> RandomForestRegressor:
    """The forest of the committed table, fitted on first use. Raises InputError when the table is damaged."""
    return train([*read_points(MEASURED), *read_points(SIMULATED)])


def predict(forest: RandomForestRegressor, question: Question, choices: Sequence[Choice]) -> list[Predicted]:
    """Throughput and time per token of every choice."""
    if not choices:
        return []
    logs = np.asarray(forest.predict([features(question, choice) for choice in choices]))
    unit = reading_s(question)
    return [
        Predicted(choice, float(np.exp(rate)) / unit, 1e3 * float(np.exp(gap)) * unit)
        for choice, (rate, gap) in zip(choices, logs, strict=True)
    ]


def best_choice(answers: Sequence[Predicted], tpot_limit_ms: float | None = None) -> Predicted:
    """Most throughput within the limit; where none keeps it, the quickest."""
    kept = [item for item in answers if tpot_limit_ms is None or item.tpot_ms <= tpot_limit_ms]
    if kept:
        return max(kept, key=lambda item: item.tokens_per_s)
    return min(answers, key=lambda item: item.tpot_ms)


def leave_one_model_out(points: Sequence[Point]) -> list[Regret]:
    """Regret on the questions of each model, by a forest that saw no point of it; beside simpler choosers."""
    rows: dict[tuple[str, str, str], list[tuple[float, bool]]] = defaultdict(list)
    for model in sorted({point.question.model for point in points}):
        forest = train([point for point in points if point.question.model != model])
        own = [point for point in points if point.question.model == model]
        for key, answer in _judge(forest, own):
            rows[key].append(answer)
    return [_regret(key, rows[key]) for key in sorted(rows)]


def _regret(key: tuple[str, str, str], answers: Sequence[tuple[float, bool]]) -> Regret:
    task, source, chooser = key
    lost = np.array([regret for regret, _ in answers])
    broken = float(np.mean([flag for _, flag in answers])) if task == "queue depth" else None
    found = float(np.mean(lost < 0.01))
    return Regret(task, source, chooser, len(lost), float(lost.mean()), float(np.quantile(lost, 0.9)), found, broken)


def _judge(
    forest: RandomForestRegressor, points: Sequence[Point]
) -> Iterator[tuple[tuple[str, str, str], tuple[float, bool]]]:
    simulated = {(p.question, p.choice): p for p in points if p.source == "simulated"}
    for source in ("measured", "simulated"):
        groups: dict[Question, list[Point]] = defaultdict(list)
        for point in points:
            if point.source == source:
                groups[point.question].append(point)
        for question, known in groups.items():
            guesses = {item.choice: item for item in predict(forest, question, [point.choice for point in known])}
            choosers = {"forest": guesses, **_other_choosers(question, known, simulated, source)}
            for name, guess in choosers.items():
                for lost in _strategy_regrets(known, guess):
                    yield ("strategy", source, name), (lost, False)
                if name != "tensor parallel":
                    yield ("queue depth", source, name), _depth_regret(known, guess)


def _other_choosers(
    question: Question, known: Sequence[Point], simulated: Mapping[tuple[Question, Choice], Point], source: str
) -> dict[str, dict[Choice, Predicted]]:
    """Always tensor parallel; and the simulator itself where the truth is measured."""
    rule = {
        point.choice: Predicted(point.choice, float(point.choice.strategy == "tp_only"), point.tpot_ms)
        for point in known
    }
    found = {"tensor parallel": rule}
    twins = {point.choice: simulated.get((question, point.choice)) for point in known}
    if source == "measured" and all(twins.values()):
        found["simulator"] = {
            choice: Predicted(choice, twin.tokens_per_s, twin.tpot_ms) for choice, twin in twins.items() if twin
        }
    return found


def _strategy_regrets(known: Sequence[Point], guess: Mapping[Choice, Predicted]) -> Iterator[float]:
    """One a number of sequences at which at least two strategies are known."""
    by_load: dict[int, list[Point]] = defaultdict(list)
    for point in known:
        by_load[point.choice.concurrency].append(point)
    for points in by_load.values():
        if len(points) > 1:
            chosen = best_choice([guess[point.choice] for point in points]).choice
            rates = {point.choice: point.tokens_per_s for point in points}
            yield 1 - rates[chosen] / max(rates.values())


def _depth_regret(known: Sequence[Point], guess: Mapping[Choice, Predicted]) -> tuple[float, bool]:
    """(throughput lost, whether the limit broke) of the joint choice of strategy and number of sequences."""
    limit = TPOT_LIMIT * min(point.tpot_ms for point in known)
    truth = {point.choice: point for point in known}
    chosen = truth[best_choice([guess[point.choice] for point in known], limit).choice]
    if chosen.tpot_ms > _TOLERANCE * limit:
        return 1.0, True
    best = max(point.tokens_per_s for point in known if point.tpot_ms <= limit)
    return max(1 - chosen.tokens_per_s / best, 0.0), False
