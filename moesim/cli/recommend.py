"""`moesim recommend`: which deployment and queue depth, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import options as o

if TYPE_CHECKING:
    from moesim.planner.recommendation import Recommendation
    from moesim.specs.scenario import Scenario

_GOAL = "Goal"


def recommend(
    model: o.ModelName = "",
    hardware: o.HardwareName = "",
    gpus: o.Gpus = 1,
    nodes: o.Nodes = None,
    input_len: o.InputLen = 512,
    output_len: o.OutputLen = 128,
    range_ratio: o.RangeRatio = 0.0,
    request_rate: o.RequestRate = None,
    trace: o.TraceFile = None,
    num_prompts: o.NumPrompts = None,
    ttft_slo: Annotated[float | None, typer.Option(help="Limit on p90 TTFT, ms.", rich_help_panel=_GOAL)] = None,
    tpot_slo: Annotated[float | None, typer.Option(help="Limit on p90 TPOT, ms.", rich_help_panel=_GOAL)] = None,
    objective: Annotated[str, typer.Option(help="throughput or latency.", rich_help_panel=_GOAL)] = "throughput",
    top: Annotated[int, typer.Option(help="How many to print.", rich_help_panel=_GOAL)] = 10,
    routing: o.RoutingText = "uniform",
    seed: o.Seed = 0,
    parameters: o.ParameterFile = None,
    enforce_eager: o.EnforceEager = False,
    kv_cache_dtype: o.KvDtype = "auto",
    quantization: o.Quantization = None,
    max_num_batched_tokens: o.MaxBatchedTokens = None,
    max_model_len: o.MaxModelLen = None,
    gpu_memory_utilization: o.MemoryUtilization = 0.9,
    all2all_backend: o.AllToAllName = "allgather_reducescatter",
    moe_backend: o.MoeBackendName = "triton",
    generation_len: o.GenerationLen = None,
    steps: o.Steps = None,
    block_len: o.BlockLen = None,
    cache: o.CacheName = None,
    expert_execution: o.ExpertExecution = "grouped",
    as_json: o.AsJson = False,
    csv: o.CsvFile = None,
) -> None:
    """Rank every deployment that fits (five placement strategies, queue depths 4 to 256) by simulation.

    Without --request-rate or --trace every slot of the queue is kept busy. With limits, those that meet them come
    first. Nothing that does not fit in memory is offered. The answer names what limits the winner, the next best
    strategy, what a deeper or shallower queue would change, and the command that starts the server.

    Example: moesim recommend --model deepseek-v3 --hardware mi300x --gpus 8 --tpot-slo 50
    """
    words = {name: value for name, value in locals().items() if name not in _NOT_WORDS}
    from moesim.cli.output import deliver, progress
    from moesim.errors import InputError
    from moesim.planner.recommendation import candidate_row
    from moesim.planner.search import Goal, check_goal, recommend_scenario
    from moesim.scenarios import make_planning_scenario
    from moesim.words import to_request

    goal = check_goal(Goal(objective, ttft_slo, tpot_slo))
    if top < 1:
        raise InputError(f"top: {top} is out of range, must be at least 1")
    scenario = make_planning_scenario(to_request(words))
    with progress("simulating") as update:
        answer = recommend_scenario(scenario, goal, top=top, progress=update)
    rows = [candidate_row(item, rank) for rank, item in enumerate(answer.candidates, start=1)]
    deliver(rows, answer.to_dict, lambda: show_recommendation(scenario, answer), as_json, csv)


_NOT_WORDS = {"ttft_slo", "tpot_slo", "objective", "top", "as_json", "csv"}


def show_recommendation(scenario: Scenario, answer: Recommendation) -> None:
    """The ranked table, the explanation, what was refused, and the command."""
    from moesim.cli.output import print_table, stdout
    from moesim.planner.recommendation import candidate_row

    cluster = scenario.cluster
    title = f"{scenario.model.name} on {cluster.num_accelerators} x {cluster.accelerator.name}, best {answer.objective}"
    rows: list[dict[str, Any]] = [candidate_row(item, rank) for rank, item in enumerate(answer.candidates, start=1)]
    print_table(title, rows)
    console = stdout()
    for sentence in answer.explanation:
        console.print(f"- {sentence}", soft_wrap=True)
    for item in answer.refused:
        console.print(f"- {item.name} is out: {item.reason}", soft_wrap=True)
    if answer.best.equal_to:
        console.print(f"- {answer.best.deployment.strategy} equals {', '.join(answer.best.equal_to)} here.")
    if not answer.best.predicted.calibrated:
        console.print(f"- Uncalibrated: constants from the data sheet ({answer.best.predicted.parameter_set}).")
    console.print(f"Start it with:\n  {answer.best.command}", soft_wrap=True)
