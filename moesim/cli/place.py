"""`moesim place`: where experts should live, how far from optimal that can be, and whether moving pays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import options as o

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from moesim.planner.placing import PlacementReport
    from moesim.routing.profile import RoutingProfile
    from moesim.specs.scenario import Scenario

_PLAN, _MOVE = "Plan", "Is moving worth it (with --model and --hardware)"


def place(
    counts: Annotated[
        str, typer.Option(help="Recorded routing: CSV, JSON, NPY, NPZ, Parquet or torch .pt.", rich_help_panel=_PLAN)
    ] = "",
    gpus: Annotated[int, typer.Option(help="Expert-parallel ranks.", rich_help_panel=_PLAN)] = 8,
    nodes: Annotated[int, typer.Option(help="Nodes they are spread over.", rich_help_panel=_PLAN)] = 1,
    groups: Annotated[int, typer.Option(help="Expert groups of the model (0: one a node).", rich_help_panel=_PLAN)] = 0,
    replicas: Annotated[
        int | None,
        typer.Option(
            help="Physical experts of a layer, over all ranks (default: no redundant ones).", rich_help_panel=_PLAN
        ),
    ] = None,
    algorithm: Annotated[
        str,
        typer.Option(
            help="linear, round_robin, greedy, eplb_global, eplb_hierarchical, affinity, optimal or auto.",
            rich_help_panel=_PLAN,
        ),
    ] = "auto",
    time_limit: Annotated[float, typer.Option(help="Seconds for the exact solver.", rich_help_panel=_PLAN)] = 12.0,
    slack: Annotated[
        float, typer.Option(help="How much more load affinity may put on the fullest rank.", rich_help_panel=_PLAN)
    ] = 0.02,
    hold_out: Annotated[
        float, typer.Option(help="Share of a trace that plans; the rest judges.", rich_help_panel=_PLAN)
    ] = 0.5,
    keep_warmup: Annotated[
        bool, typer.Option("--keep-warmup", help="Do not cut dummy tokens.", rich_help_panel=_PLAN)
    ] = False,
    current: Annotated[
        str | None, typer.Option(help="JSON map in use (default: linear, no replicas).", rich_help_panel=_MOVE)
    ] = None,
    model: Annotated[str, typer.Option(help="Model the counts come from.", rich_help_panel=_MOVE)] = "",
    hardware: Annotated[str, typer.Option(help="Accelerator.", rich_help_panel=_MOVE)] = "",
    tokens_per_step: Annotated[
        int, typer.Option(help="Tokens of a step over all ranks.", rich_help_panel=_MOVE)
    ] = 4096,
    interval: Annotated[
        int | None, typer.Option(help="Steps until the load has changed again.", rich_help_panel=_MOVE)
    ] = None,
    objective: Annotated[
        str, typer.Option(help="tokens (fullest rank), or seconds (slowest rank plus network).", rich_help_panel=_MOVE)
    ] = "tokens",
    export: Annotated[str | None, typer.Option(help="Write the plan to this file.", rich_help_panel="Output")] = None,
    format: Annotated[
        str, typer.Option(help="sglang, sglang_counts, vllm or json.", rich_help_panel="Output")
    ] = "sglang",
    seed: o.Seed = 0,
    as_json: o.AsJson = False,
    csv: o.CsvFile = None,
) -> None:
    """Plan which rank holds which expert, with replicas, and certify how far from optimal the plan can be.

    Example: moesim place --counts counts.csv --gpus 32 --nodes 4 --groups 8 --replicas 288
    """
    from moesim.cli.output import print_json, progress, write_atomic, write_csv
    from moesim.placement.plan import PlacementRequest

    words = (model, hardware, seed, tokens_per_step, interval, objective)
    profile, experts = _read(counts, model, keep_warmup)
    request = PlacementRequest(
        num_slots=replicas if replicas is not None else -(-experts // max(gpus, 1)) * gpus,
        num_ranks=gpus,
        num_nodes=nodes,
        num_groups=groups,
        algorithm=algorithm,
        limit_s=time_limit,
        slack=slack,
        seed=seed,
    )
    held = _current(current, profile, gpus)
    with progress("placing") as update:
        report = _report(profile, request, held, hold_out, words, update)
    if export:
        from pathlib import Path

        from moesim.placement.exchange import export_plan
        from moesim.planner.placing import all_layers

        write_atomic(Path(export), export_plan(report.plan.physical, all_layers(profile), gpus, format) + "\n")
    if csv:
        write_csv(csv, report.rows())
    elif as_json:
        print_json(report.to_dict())
    else:
        _show(report)


def _read(counts: str, model: str, keep_warmup: bool) -> tuple[RoutingProfile, int]:
    from pathlib import Path

    from moesim.errors import InputError
    from moesim.routing.profile_files import read_profile
    from moesim.specs.catalog import get_model

    if not counts:
        raise InputError("--counts is missing: a file of recorded routing (rows: layers, columns: experts)")
    experts = None
    if model:
        moe = get_model(model).moe
        if moe is None:
            raise InputError(f"model: {model} has no routed experts")
        experts = moe.num_experts
    profile = read_profile(Path(counts), experts, keep_warmup)
    return profile, profile.num_experts


def _current(path: str | None, profile: RoutingProfile, gpus: int) -> NDArray[np.int64] | None:
    if path is None:
        return None
    from pathlib import Path

    from moesim.placement.exchange import read_map

    layers = max(profile.num_file_layers, profile.num_layers)
    return read_map(Path(path), profile.num_experts, gpus, layers)


def _report(
    profile: RoutingProfile,
    request: Any,
    current: NDArray[np.int64] | None,
    hold_out: float,
    words: tuple[str, str, int, int, int | None, str],
    update: Any,
) -> PlacementReport:
    from moesim.errors import InputError
    from moesim.planner.placing import place as make_report

    model, hardware, objective = words[0], words[1], words[5]
    if objective not in ("tokens", "seconds"):
        raise InputError(f"objective: unknown {objective!r}; known: tokens, seconds")
    if not hardware:
        if objective == "seconds":
            raise InputError("objective: seconds needs --model and --hardware")
        return make_report(profile, request, current, hold_out, update)
    if not model:
        raise InputError("model: is missing; --hardware needs it")
    from moesim.planner.timed_placing import TimedQuery, place_in_time

    seed, tokens, interval = words[2:5]
    scenario = _scenario(model, hardware, request.num_ranks, request.num_nodes, seed)
    query = TimedQuery(scenario, tokens, interval, objective)
    return place_in_time(profile, request, current, hold_out, query, update)


def _scenario(model: str, hardware: str, gpus: int, nodes: int, seed: int) -> Scenario:
    """Attention data-parallel on every rank, experts over all of them, exchanged copy by copy."""
    from moesim.words import to_scenario

    sizes = {"gpus": gpus, "nodes": nodes if nodes > 1 else None, "tp": 1, "dp": gpus, "ep": gpus}
    return to_scenario(
        {"model": model, "hardware": hardware, "seed": seed, "all2all_backend": "deepep_high_throughput", **sizes}
    )


def _show(report: PlacementReport) -> None:
    from moesim.cli.output import print_table, stdout

    request, document = report.plan.request, report.to_dict()
    title = f"{request.algorithm}: {request.num_slots} replicas on {request.num_ranks} ranks"
    print_table(
        title, report.rows(), "max over mean: fullest rank. gap: certified, fullest rank over its lower bound - 1."
    )
    rows = [{"quantity": name.replace("_", " "), "value": value} for name, value in report.summary().items()]
    for name in ("copies_per_token", "copies_per_token_between_nodes"):
        before, after = document["traffic"]["before"][name], document["traffic"]["after"][name]
        rows.append({"quantity": f"{name.replace('_', ' ')}, before and after", "value": f"{before:.3f}, {after:.3f}"})
    for part in ("held_out", "rebalancing"):
        for name, value in (document[part] or {}).items():
            rows.append({"quantity": f"{part.replace('_', ' ')}: {name.replace('_', ' ')}", "value": value})
    print_table(f"Plan in {report.plan.seconds:.1f} s", rows)
    cut = ", ".join(f"{count} {reason}" for reason, count in report.profile.cut.items())
    for note in (*([f"cut: {cut}"] if cut else []), *document["notes"]):
        stdout().print(f"- {note}", soft_wrap=True)
