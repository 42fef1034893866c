"""The verb `moesim predict-strategy`: strategy and queue depth from the light predictor, and how good it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import options as o

if TYPE_CHECKING:
    from calibration.predictor import Predicted, Regret


def predict_strategy(
    model: Annotated[str, typer.Option(help="Model, as in moesim models.")] = "",
    hardware: Annotated[str, typer.Option(help="Accelerator, as in moesim hardware.")] = "",
    gpus: Annotated[int, typer.Option(help="Number of accelerators.")] = 8,
    input_len: Annotated[int, typer.Option(help="Prompt tokens.")] = 512,
    output_len: Annotated[int, typer.Option(help="Output tokens.")] = 128,
    tpot_slo: Annotated[float | None, typer.Option(help="Limit on the time per output token, ms.")] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Print the regret on models left out instead of an answer.")
    ] = False,
    as_json: o.AsJson = False,
    csv: o.CsvFile = None,
) -> None:
    """Answer in milliseconds which strategy and how many sequences in flight give most throughput.

    A random forest, fitted on first use to the shipped table of measured and simulated points; moesim recommend
    simulates instead, and is what to trust where the two differ. --evaluate prints the throughput lost against the
    best choice on models that the forest has not seen.

    Example: moesim predict-strategy --model mixtral-8x7b --hardware a100-80gb --gpus 2 --tpot-slo 40
    """
    from dataclasses import asdict

    from moesim.cli.output import deliver

    if evaluate:
        table = regret_table()
        rows = [asdict(item) for item in table]
        deliver(rows, lambda: rows, lambda: _show_regret(table), as_json, csv)
        return
    answers = answer(model, hardware, gpus, (input_len, output_len), tpot_slo)
    rows = [_row(item) for item in answers]
    deliver(rows, lambda: rows, lambda: _show(rows), as_json, csv)


def answer(
    model: str, hardware: str, gpus: int, lengths: tuple[int, int], tpot_slo: float | None = None
) -> list[Predicted]:
    """Every choice that fits, best first: those within the limit by throughput, then the others by time per token.

    Raises:
        InputError: an unknown name, a bad size, or nothing fits.
    """
    from calibration.predictor import predict, shipped_forest
    from calibration.strategy_grid import choices_of
    from calibration.strategy_table import Question
    from moesim.errors import InputError
    from moesim.scenarios import Request, make_scenario
    from moesim.specs.catalog import get_hardware, get_model

    if tpot_slo is not None and not tpot_slo > 0:
        raise InputError(f"tpot_slo: {tpot_slo} is out of range, must be a positive number of milliseconds")
    request = Request(model=model, hardware=hardware, gpus=gpus, input_len=lengths[0], output_len=lengths[1])
    make_scenario(request)
    question = Question(
        model=get_model(model).name,
        hardware=get_hardware(hardware).name,
        gpus=gpus,
        input_tokens=lengths[0],
        output_tokens=lengths[1],
    )
    fitting = [choice for choice in choices_of(question) if choice.concurrency >= choice.dp and _fits(request, choice)]
    if not fitting:
        raise InputError(f"gpus: {question.model} does not fit on {gpus} x {question.hardware}; add accelerators")
    found = predict(shipped_forest(), question, fitting)
    limit = tpot_slo or float("inf")
    return sorted(
        found, key=lambda item: (item.tpot_ms > limit, -item.tokens_per_s if item.tpot_ms <= limit else item.tpot_ms)
    )


def _fits(request: Any, choice: Any) -> bool:
    import msgspec

    from moesim.errors import InputError
    from moesim.placement.fit import require_fit
    from moesim.scenarios import make_scenario

    words = msgspec.structs.replace(request, tp=choice.tp, dp=choice.dp, ep=choice.ep)
    try:
        scenario = make_scenario(words)
        require_fit(scenario.model, scenario.deployment, scenario.cluster, request.input_len + request.output_len)
    except InputError:
        return False
    return True


def regret_table() -> list[Regret]:
    """Regret of the forest, of always taking tensor parallelism, and of the simulator, model by model left out."""
    from calibration.predictor import leave_one_model_out
    from calibration.strategy_table import MEASURED, SIMULATED, read_points

    return leave_one_model_out([*read_points(MEASURED), *read_points(SIMULATED)])


def _row(item: Predicted) -> dict[str, Any]:
    choice = item.choice
    return {
        "strategy": choice.strategy,
        "tensor_parallel_size": choice.tp,
        "data_parallel_size": choice.dp,
        "expert_parallel_size": choice.ep,
        "sequences": choice.concurrency,
        "max_num_seqs": -(-choice.concurrency // choice.dp),
        "output_tokens_per_s": item.tokens_per_s,
        "tpot_ms": item.tpot_ms,
    }


def _show(rows: list[dict[str, Any]]) -> None:
    from moesim.cli.output import print_table

    print_table("Predicted by the forest, best first", rows[:10])


def _show_regret(table: list[Regret]) -> None:
    from moesim.cli.output import print_table

    rows = [
        {
            "task": item.task,
            "truth": item.source,
            "chosen by": item.chooser,
            "questions": item.questions,
            "mean regret": f"{item.mean:.1%}",
            "p90": f"{item.p90:.1%}",
            "best found": f"{item.best_found:.0%}",
            "limit broken": "" if item.violations is None else f"{item.violations:.0%}",
        }
        for item in table
    ]
    print_table("Throughput lost against the best choice, each model left out", rows)
