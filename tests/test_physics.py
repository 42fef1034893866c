"""The physics that measured runs show, met by the data-sheet priors alone, before any fitting."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from moesim.costs.closed_form import Batch, estimate_step
from moesim.costs.layout import make_layout
from moesim.metrics.summary import imbalance_of_step
from moesim.simulation import simulate_scenario
from tests.scenarios import scenario

SEED = Path(__file__).parents[2] / "shared" / "reference" / "seed_measurements"
MIXTRAL = {"gpus": 2, "tp": 2, "input_len": 128, "output_len": 128, "num_prompts": 32, "parameters": "prior-nvidia"}
OLMOE = {"gpus": 1, "input_len": 128, "output_len": 128, "parameters": "prior-nvidia"}
LLADA = {"gpus": 1, "input_len": 60, "generation_len": 128, "steps": 64, "block_len": 32, "num_prompts": 2}


def rows(name: str) -> dict[str, dict[str, str]]:
    """The rows of a shared file by id; the test is skipped where the file is not beside the checkout."""
    path = SEED / name
    if not path.exists():
        pytest.skip("no shared reference data beside the checkout")
    return {row["row_id"]: row for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())}


def mixtral_itl_ms(concurrency: int) -> float:
    result = simulate_scenario(
        scenario("mixtral-8x7b", "a100-80gb", concurrency=concurrency, **MIXTRAL), intervals=False
    )
    assert result.itl_ms
    return result.itl_ms.p50


def test_mixtral_decode_grows_with_the_experts_that_are_read():
    """From 2 to about 5.5 of 8 experts a layer: 1.7 to 2.4 times the time, all of it bandwidth."""
    assert 1.7 <= mixtral_itl_ms(4) / mixtral_itl_ms(1) <= 2.4
    built = scenario("mixtral-8x7b", "a100-80gb", **MIXTRAL)
    layout = make_layout(built.model, built.deployment, built.cluster, built.parameters, built.routing, 0)
    distinct = [imbalance_of_step(layout, tokens) for tokens in (1, 4)]
    assert distinct[0] and distinct[1]
    assert distinct[0].distinct_experts == 2
    assert distinct[1].distinct_experts == pytest.approx(8 * (1 - 0.75**4), rel=0.05)
    step = estimate_step(layout, Batch(decodes=4, context_tokens=192))
    assert step.limited_by == "HBM bandwidth"


@pytest.mark.reference
def test_mixtral_rows_show_that_growth():
    table = rows("serving.csv")
    one, four = (float(table[f"mix-a80x2-tp-r1-i128o128-c{n}"]["itl_p50_ms"]) for n in (1, 4))
    assert 1.7 <= four / one <= 2.4
    assert mixtral_itl_ms(1) == pytest.approx(one, rel=0.25)
    assert mixtral_itl_ms(4) == pytest.approx(four, rel=0.25)


def olmoe_itl_ms(concurrency: int, eager: bool) -> float:
    built = scenario(
        "olmoe-1b-7b", "a100-80gb", concurrency=concurrency, num_prompts=4 * concurrency, enforce_eager=eager, **OLMOE
    )
    result = simulate_scenario(built, intervals=False)
    assert result.itl_ms
    return result.itl_ms.p50


def test_eager_steps_are_flat_because_launches_cost_time():
    eager = [olmoe_itl_ms(n, True) for n in (1, 8, 32)]
    graphs = [olmoe_itl_ms(n, False) for n in (1, 8, 32)]
    assert max(eager) / min(eager) < 1.2
    assert max(graphs) / min(graphs) > 1.5
    assert min(eager) > 2 * max(graphs)
    limited = simulate_scenario(scenario("olmoe-1b-7b", "a100-80gb", concurrency=8, enforce_eager=True, **OLMOE))
    assert limited.breakdown.limited_by in {"host", "kernel launch"}


@pytest.mark.reference
def test_olmoe_rows_are_flat():
    table = rows("serving.csv")
    measured = [float(table[f"olm-a80x1-r1-i128o128-c{n}"]["itl_p50_ms"]) for n in (1, 8, 32)]
    assert max(measured) / min(measured) < 1.2
    for n, value in zip((1, 8, 32), measured, strict=True):
        assert olmoe_itl_ms(n, True) == pytest.approx(value, rel=0.4)


def llada(model: str, execution: str = "loop") -> tuple[float, str]:
    built = scenario(
        model, "a100-40gb", expert_execution=execution, enforce_eager=True, parameters="prior-nvidia", **LLADA
    )
    result = simulate_scenario(built, intervals=False)
    assert result.e2e_ms
    return result.e2e_ms.mean, result.breakdown.limited_by


def test_an_expert_loop_makes_the_smaller_model_slower_because_of_launches():
    """LLaDA-MoE reads a fifth of dense LLaDA-8B's active weights and is slower all the same."""
    sparse, limit = llada("llada-moe-7b")
    dense, _ = llada("llada-8b")
    grouped, _ = llada("llada-moe-7b", "grouped")
    assert sparse > 2 * dense
    assert limit in {"host", "kernel launch"}
    assert grouped < dense


@pytest.mark.reference
def test_llada_rows_show_it():
    table = rows("diffusion.csv")
    sparse, dense = (
        float(table[f"a100-40gb-{model}-g128-s64"]["prompt_mean_ms"]) for model in ("llada-moe-7b-a1b", "llada-8b")
    )
    assert sparse > 2 * dense
