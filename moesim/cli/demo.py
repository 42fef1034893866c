"""`moesim demo`: the main job on an embedded example, beside measured figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moesim.cli.options import AsJson

if TYPE_CHECKING:
    from moesim.planner.recommendation import Recommendation
    from moesim.references import Compared
    from moesim.specs.scenario import Scenario


def demo(as_json: AsJson = False) -> None:
    """Recommend deployments of Mixtral-8x7B and DeepSeek-V3 on 8 x MI300X and H200, beside measured figures."""
    from moesim.cli.output import print_json, progress
    from moesim.planner.search import recommend_scenario
    from moesim.references import compare, demo_goal, demo_scenarios, load_demo

    example = load_demo()
    goal = demo_goal(example)
    scenarios = demo_scenarios(example)
    with progress("simulating") as update:
        answers = [recommend_scenario(item, goal, top=3, progress=update) for item in scenarios]
        compared = [compare(item) for item in example.references]
    if as_json:
        print_json(_document(scenarios, answers, compared))
    else:
        _show(scenarios, answers, compared)


def _document(
    scenarios: list[Scenario], answers: list[Recommendation], compared: list[Compared]
) -> dict[str, list[dict[str, Any]]]:
    cases = [
        {"model": item.model.name, "hardware": item.cluster.accelerator.name, **answer.to_dict()}
        for item, answer in zip(scenarios, answers, strict=True)
    ]
    return {"cases": cases, "references": [{"id": item.reference.id, **item.row()} for item in compared]}


def _show(scenarios: list[Scenario], answers: list[Recommendation], compared: list[Compared]) -> None:
    from moesim.cli.output import print_table, stdout
    from moesim.cli.recommend import show_recommendation

    console = stdout()
    for scenario, answer in zip(scenarios, answers, strict=True):
        show_recommendation(scenario, answer)
        console.print()
    rows = [item.row() for item in compared]
    short = [{key: value for key, value in row.items() if key not in {"note", "source"}} for row in rows]
    print_table("Measured figures of similar runs, and moesim's prediction of the same runs", short)
    for row in rows:
        console.print(f"- {row['run']}: {row['note']}. Source: {row['source']}", soft_wrap=True)
    console.print("\nYour own question: moesim recommend --help. Accuracy by group: see the README.")
