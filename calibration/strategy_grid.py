"""The points that the light predictor is trained on: `python -m calibration.strategy_grid [SERVING.csv]`.

Measured points come from a file of serving runs; every measured choice is simulated as well (so that the simulator's
own regret can be told), and a seeded draw of models, accelerators, sizes and lengths is simulated at every strategy
that fits and at five numbers of sequences. The draws need no file.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

from calibration.readers import read_runs
from calibration.rejection import reason_to_reject
from calibration.strategy_table import MEASURED, SIMULATED, Choice, Point, Question, read_points, write_points
from moesim.errors import InputError
from moesim.placement.strategies import enumerate_strategies
from moesim.scenarios import Request, make_scenario
from moesim.simulation import simulate_scenario
from moesim.specs.catalog import get_hardware, get_model
from moesim.specs.hardware import make_cluster

MODELS = (
    *("mixtral-8x7b", "olmoe-1b-7b", "qwen1.5-moe-a2.7b", "qwen2-57b-a14b", "qwen3-30b-a3b", "qwen3-235b-a22b"),
    *("deepseek-v3", "gpt-oss-120b", "dbrx"),
)
HARDWARE = ("a100-40gb", "a100-80gb", "h100", "h200", "mi300x")
GPUS = (2, 4, 8)
LENGTHS = ((128, 128), (512, 128), (1024, 128), (2048, 64))
CONCURRENCY = (1, 4, 16, 64, 256)


def draw_questions(count: int, rng: np.random.Generator) -> list[Question]:
    """Different combinations of model, accelerator, count and lengths, drawn evenly."""
    whole = list(product(MODELS, HARDWARE, GPUS, LENGTHS))
    chosen = rng.permutation(len(whole))[:count]
    return [
        Question(model=model, hardware=hardware, gpus=gpus, input_tokens=lengths[0], output_tokens=lengths[1])
        for model, hardware, gpus, lengths in (whole[index] for index in chosen.tolist())
    ]


def choices_of(question: Question) -> Iterator[Choice]:
    """Every strategy of the cluster at every number of sequences that gives each rank at least one."""
    cluster = make_cluster(get_hardware(question.hardware), question.gpus)
    strategies, _ = enumerate_strategies(get_model(question.model), cluster)
    for strategy, concurrency in product(strategies, CONCURRENCY):
        yield Choice(
            tp=strategy.tensor_parallel_size,
            dp=strategy.data_parallel_size,
            ep=strategy.expert_parallel_size,
            concurrency=concurrency,
        )


def simulate(question: Question, choice: Choice) -> Point | None:
    """The simulated point; None where the model does not fit."""
    request = Request(
        model=question.model,
        hardware=question.hardware,
        gpus=question.gpus,
        tp=choice.tp,
        dp=choice.dp,
        ep=choice.ep,
        input_len=question.input_tokens,
        output_len=question.output_tokens,
        concurrency=choice.concurrency,
        num_prompts=2 * choice.concurrency,
    )
    try:
        result = simulate_scenario(make_scenario(request), intervals=False)
    except InputError:
        return None
    if result.tpot_ms is None:
        return None
    return Point(
        source="simulated",
        question=question,
        choice=choice,
        tokens_per_s=result.output_tokens_per_s,
        tpot_ms=result.tpot_ms.p50,
    )


def measured_points(path: Path) -> list[Point]:
    """The unflagged serving runs of a file, the median over repeats. Raises InputError when it cannot be read."""
    grouped: dict[tuple[Question, Choice], list[tuple[float, float]]] = defaultdict(list)
    for run in read_runs(path)[0]:
        request, values = run.request, run.measured
        token = next((name for name in ("tpot_p50_ms", "itl_p50_ms") if name in values), None)
        usable = token is not None and "output_tok_per_s" in values
        if not usable or reason_to_reject(run, "output_tok_per_s") or request.concurrency is None:
            continue
        tp, dp = request.tp or 1, request.dp or 1
        question = Question(
            model=get_model(request.model).name,
            hardware=get_hardware(request.hardware).name,
            gpus=tp * dp,
            input_tokens=request.input_len,
            output_tokens=request.output_len,
        )
        choice = Choice(tp=tp, dp=dp, ep=request.ep or 1, concurrency=request.concurrency)
        grouped[question, choice].append((values["output_tok_per_s"], values[token or ""]))
    return [
        Point(
            source="measured",
            question=question,
            choice=choice,
            tokens_per_s=median(rate for rate, _ in found),
            tpot_ms=median(gap for _, gap in found),
        )
        for (question, choice), found in sorted(grouped.items(), key=repr)
    ]


def simulated_points(measured: Sequence[Point], count: int, seed: int) -> Iterator[Point]:
    """Simulations of every measured choice, then of `count` drawn questions."""
    asked = [(point.question, point.choice) for point in measured]
    drawn = draw_questions(count, np.random.default_rng(seed))
    asked += [(question, choice) for question in drawn for choice in choices_of(question)]
    for question, choice in asked:
        point = simulate(question, choice)
        if point is not None:
            yield point


def main(words: Sequence[str] | None = None) -> None:
    """Write both tables; with no file the measured table stays and only the simulated one is made anew."""
    parser = argparse.ArgumentParser(description="Make the tables that the light predictor is trained on.")
    parser.add_argument("file", nargs="?", type=Path, help="serving runs (the measured table as it is)")
    given = parser.parse_args(words)
    try:
        measured = measured_points(given.file) if given.file else read_points(MEASURED)
    except InputError as error:
        parser.error(str(error))
    write_points(MEASURED, measured)
    write_points(SIMULATED, simulated_points(measured, count=150, seed=0))


if __name__ == "__main__":
    main()
