"""`moesim imbalance`: how uneven recorded routing is, whether that is more than chance, and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli import options as o

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from moesim.routing.profile import RoutingProfile
    from moesim.specs.scenario import Scenario

_ROUTING, _COST = "Recorded routing", "What it costs (with --model and --hardware)"
_SYNTHETIC = "Synthetic routing"


def imbalance(
    counts: Annotated[
        str, typer.Option(help="CSV, JSON, NPY, NPZ, Parquet or torch .pt file.", rich_help_panel=_ROUTING)
    ] = "",
    routing: Annotated[
        str,
        typer.Option(help="Without --counts: draw a trace of this routing for --model.", rich_help_panel=_SYNTHETIC),
    ] = "",
    tokens: Annotated[int, typer.Option(help="Tokens to draw.", rich_help_panel=_SYNTHETIC)] = 8192,
    sequence_correlation: Annotated[
        float,
        typer.Option(help="How alike tokens of a sequence are (0: not, 1: strongly).", rich_help_panel=_SYNTHETIC),
    ] = 0.0,
    layer_affinity: Annotated[
        float, typer.Option(help="Preference for the partners of the last layer's experts.", rich_help_panel=_SYNTHETIC)
    ] = 0.0,
    drift_tokens: Annotated[
        int, typer.Option(help="Tokens in which the hot experts change (0: never).", rich_help_panel=_SYNTHETIC)
    ] = 0,
    gpus: Annotated[int | None, typer.Option(help="Expert-parallel ranks.", rich_help_panel=_ROUTING)] = None,
    map: Annotated[
        str | None,
        typer.Option(help="JSON map of `moesim place` or SGLang (default: linear).", rich_help_panel=_ROUTING),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Experts of a token (default: the model's, the trace's, else 1).", rich_help_panel=_ROUTING),
    ] = None,
    keep_warmup: Annotated[
        bool, typer.Option("--keep-warmup", help="Do not cut dummy tokens.", rich_help_panel=_ROUTING)
    ] = False,
    model: Annotated[str, typer.Option(help="Model the counts come from.", rich_help_panel=_COST)] = "",
    hardware: Annotated[str, typer.Option(help="Accelerator.", rich_help_panel=_COST)] = "",
    nodes: o.Nodes = None,
    tp: o.Tp = None,
    batch: Annotated[int, typer.Option(help="Sequences decoding on each rank.", rich_help_panel=_COST)] = 64,
    input_len: o.InputLen = 512,
    output_len: o.OutputLen = 128,
    parameters: o.ParameterFile = None,
    seed: o.Seed = 0,
    plot: Annotated[str | None, typer.Option(help="Write heat maps to this PNG, SVG or PDF.")] = None,
    save_profile: Annotated[str | None, typer.Option(help="Write the cleaned profile to this NPZ.")] = None,
    as_json: o.AsJson = False,
    csv: o.CsvFile = None,
) -> None:
    """Measure imbalance per layer, expert, rank and over time, against what chance gives for so few tokens.

    Example: moesim imbalance --counts routed.npz --gpus 8 --model olmoe-1b-7b --hardware h200 --plot map.png
    """
    import numpy as np

    from moesim.cli.output import print_json, write_csv
    from moesim.routing.report import imbalance_report

    if routing and not counts:
        effects = (tokens, sequence_correlation, layer_affinity, drift_tokens)
        profile, known_k = _draw(model, routing, effects, seed)
    else:
        profile, known_k = _read(counts, model, keep_warmup)
    used_k = top_k or profile.top_k or known_k or 1
    _check_top_k(used_k, profile.num_experts)
    loads = _rank_loads(profile, gpus, map)
    report = imbalance_report(profile, used_k, loads, np.random.default_rng([seed, 0x61]))
    words = {"model": model, "hardware": hardware, "gpus": gpus, "nodes": nodes, "tp": tp, "seed": seed}
    words |= {"input_len": input_len, "output_len": output_len, "parameters": parameters}
    cost = _cost(profile, words, map, batch)
    _write(profile, loads, cost, plot, save_profile)
    if csv:
        write_csv(csv, [_flat(row) for row in report.layers])
    elif as_json:
        print_json({**report.to_dict(), "cost": cost})
    else:
        _show(report.to_dict(), cost)


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A layer as one CSV row: counts of hot and cold experts, and a column for each expert's load."""
    plain = {name: value for name, value in row.items() if name != "expert_loads"}
    low, high = plain.pop("gini_interval_90")
    numbers = {"hot_experts": len(row["hot_experts"]), "cold_experts": len(row["cold_experts"])}
    loads = {f"expert_{expert}": value for expert, value in enumerate(row["expert_loads"])}
    return {**plain, "gini_low_90": low, "gini_high_90": high, **numbers, **loads}


def _read(counts: str, model: str, keep_warmup: bool) -> tuple[RoutingProfile, int | None]:
    from pathlib import Path

    from moesim.errors import InputError
    from moesim.routing.profile_files import read_profile
    from moesim.specs.catalog import get_model

    if not counts:
        raise InputError("--counts is missing: a file of recorded routing (rows: layers, columns: experts)")
    if not model:
        return read_profile(Path(counts), None, keep_warmup), None
    moe = get_model(model).moe
    if moe is None:
        raise InputError(f"model: {model} has no routed experts")
    return read_profile(Path(counts), moe.num_experts, keep_warmup), moe.top_k


def _draw(model: str, routing: str, effects: tuple[int, float, float, int], seed: int) -> tuple[RoutingProfile, int]:
    """A synthetic trace of the model's MoE layers (16 at most, as the simulation draws)."""
    import numpy as np

    from moesim.errors import InputError
    from moesim.routing.synthetic import TraceSettings, synthetic_trace
    from moesim.specs.catalog import get_model
    from moesim.specs.routing import parse_routing

    if not model:
        raise InputError("model: is missing; --routing draws a trace for a model")
    described = get_model(model)
    if described.moe is None:
        raise InputError(f"model: {model} has no routed experts")
    tokens, correlation, affinity, drift = effects
    settings = TraceSettings(
        tokens=tokens, sequence_correlation=correlation, layer_affinity=affinity, drift_tokens=drift
    )
    layers = min(described.num_moe_layers, 16)
    rng = np.random.default_rng([seed, 0x5E])
    return synthetic_trace(parse_routing(routing), described.moe, layers, settings, rng), described.moe.top_k


def _check_top_k(top_k: int, experts: int) -> None:
    from moesim.errors import InputError

    if not 1 <= top_k <= experts:
        raise InputError(f"top_k: {top_k} is out of range, must be 1 to the {experts} experts")


def _rank_loads(profile: RoutingProfile, gpus: int | None, map: str | None) -> NDArray[np.float64] | None:
    """[steps, layers, ranks] under the map, None without ranks."""
    from pathlib import Path

    import numpy as np

    from moesim.errors import InputError
    from moesim.placement.baselines import linear
    from moesim.placement.exchange import read_map
    from moesim.placement.replicas import rank_loads_of
    from moesim.specs.deployment import divisors

    if gpus is None:
        if map is not None:
            raise InputError("gpus: is missing; a map needs the number of ranks")
        return None
    if map is not None:
        layers = max(profile.num_file_layers, profile.num_layers)
        physical = read_map(Path(map), profile.num_experts, gpus, layers)
        physical = physical[list(profile.kept_layers)] if profile.kept_layers else physical
    else:
        if gpus < 1 or profile.num_experts % gpus:
            raise InputError(
                f"gpus: {gpus} does not divide the {profile.num_experts} experts (sizes that do: "
                f"{divisors(profile.num_experts)}); other sizes need a --map with replicas"
            )
        physical = np.tile(linear(profile.num_experts, profile.num_experts, gpus), (profile.num_layers, 1))
    maps = np.broadcast_to(physical, (profile.num_steps, *physical.shape))
    return rank_loads_of(profile.counts, maps, gpus)


def _cost(profile: RoutingProfile, words: dict[str, Any], map: str | None, batch: int) -> dict[str, Any] | None:
    from moesim.errors import InputError

    if not words["hardware"]:
        return None
    if not words["model"]:
        raise InputError("model: is missing; --hardware needs it")
    from moesim.planner.imbalance_cost import imbalance_cost

    own, curve = imbalance_cost(_scenario(profile, words, map), batch)
    return {"batch": batch, **own.to_dict(), "curve": [item.to_dict() for item in curve]}


def _scenario(profile: RoutingProfile, words: dict[str, Any], map: str | None) -> Scenario:
    """Attention data-parallel beside `tp`, experts over all ranks, routed as recorded."""
    from pathlib import Path

    import msgspec

    from moesim.placement.exchange import read_map
    from moesim.specs.routing import Routing
    from moesim.words import to_scenario

    gpus = words["gpus"] or 8
    tp = words["tp"] or 1
    given = {**words, "gpus": gpus, "tp": tp, "dp": max(gpus // tp, 1), "ep": gpus}
    scenario = to_scenario(given)
    rows = tuple(tuple(float(value) for value in row) for row in profile.totals)
    scenario = msgspec.structs.replace(scenario, routing=Routing(kind="counts", counts=rows, source=profile.source))
    if map is None:
        return scenario
    physical = read_map(Path(map), profile.num_experts, gpus, max(profile.num_file_layers, profile.num_layers))
    physical = physical[list(profile.kept_layers)] if profile.kept_layers else physical
    deployment = msgspec.structs.replace(
        scenario.deployment,
        placement=tuple(tuple(int(expert) for expert in row) for row in physical),
        redundant_experts=physical.shape[1] - profile.num_experts,
    )
    return msgspec.structs.replace(scenario, deployment=deployment)


def _write(
    profile: RoutingProfile,
    loads: NDArray[np.float64] | None,
    cost: dict[str, Any] | None,
    plot: str | None,
    save: str | None,
) -> None:
    from pathlib import Path

    if plot:
        from moesim.routing.heatmap import plot_profile

        plot_profile(profile, loads, cost["curve"] if cost else None, Path(plot))
    if save:
        from moesim.routing.profile import save_profile

        save_profile(profile, Path(save))


def _show(document: dict[str, Any], cost: dict[str, Any] | None) -> None:
    from moesim.cli.output import print_table, stdout

    names = ("layer", "gini", "gini_expected_uniform", "significant", "cv", "max_over_mean", "jain", "entropy_bits")
    rows = [
        {**{name: row[name] for name in names}, "hot": len(row["hot_experts"]), "cold": len(row["cold_experts"])}
        for row in document["layers"]
    ]
    note = "Expected: Gini of uniform routing with as many tokens. Significant at 1 %. Hot > 2x, cold < 0.2x the mean."
    print_table("Imbalance by layer", rows, note)
    if document["ranks"]:
        ranks = [
            {name: row[name] for name in ("layer", "max_over_mean", "per_step_max_over_mean", "gini", "cv")}
            for row in document["ranks"]
        ]
        print_table("Imbalance over ranks", ranks)
        print_table(
            "Balancedness", [{"definition": name, "value": value} for name, value in document["balancedness"].items()]
        )
    if len(document["over_time"]) > 1:
        print_table(
            "Over time", document["over_time"], "drift: total-variation distance of the shares to the step before."
        )
    if cost:
        print_table(
            f"Cost at batch {cost['batch']} a rank", [{name: value for name, value in cost.items() if name != "curve"}]
        )
        print_table("Imbalance to latency (Zipf routing)", cost["curve"])
    cut = ", ".join(f"{count} {reason}" for reason, count in document["profile"]["cut"].items())
    for note in (*([f"cut: {cut}"] if cut else []), *document["notes"]):
        stdout().print(f"- {note}", soft_wrap=True)
