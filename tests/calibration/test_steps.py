"""Single steps: sizes, monotony, and the host's part."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.replay import attention_seconds, replay_seconds
from calibration.runs import StepPoint
from calibration.slopes import moved_operators
from calibration.steps import largest_sizes, step_slopes, step_values, steps_table, with_layers
from moesim.costs.layout import make_layout
from moesim.costs.operators import step_operators
from moesim.costs.step import build_step_model
from moesim.specs.catalog import get_model
from moesim.specs.parameters import PARAMETER_NAMES, scaled
from tests.scenarios import scenario

EAGER = scenario("olmoe-1b-7b", "a100-80gb", gpus=1, enforce_eager=True)
GRAPH = scenario("olmoe-1b-7b", "a100-80gb", gpus=1)
NAMES = ("gemm_slowdown", "experts_slowdown", "attention_slowdown", "kernel_s", "host_launch_s", "host_step_s")


def decodes(count, context=512):
    return StepPoint(decodes=count, context_tokens=float(context))


def prompt(tokens):
    return StepPoint(chunks=1, chunk_tokens=tokens, pairs=tokens * (tokens + 1) / 2, kv_tokens=float(tokens))


POINTS = [decodes(count) for count in (1, 2, 4, 8, 16, 32, 64)]
LAUNCHED = [prompt(tokens) for tokens in (64, 256, 1024)]
OPERATORS = {
    name: moved_operators(built, NAMES, *largest_sizes([*POINTS, *LAUNCHED]))
    for name, built in (("eager", EAGER), ("graph", GRAPH))
}


def seconds(kind, points):
    operators = OPERATORS[kind][None]
    return step_values(operators, steps_table(operators, points))


def test_a_step_never_gets_shorter_with_more_sequences():
    assert np.all(np.diff(seconds("graph", POINTS)["step"]) >= -1e-12)


def test_longer_prompts_take_longer_and_long_ones_in_proportion():
    found = seconds("graph", [prompt(n) for n in (128, 256, 512, 1024)])["step"]
    assert np.all(np.diff(found) > 0)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 64), context=st.integers(1, 4000))
def test_more_context_never_shortens_a_step(count, context):
    short, long = seconds("graph", [decodes(count, context), decodes(count, context + 500)])["step"]
    assert long >= short


def test_a_replayed_graph_hides_launches_that_an_eager_step_waits_for():
    """At batch one an eager step lasts as long as the host launches; the graph's lasts less."""
    eager, graph = (seconds(kind, POINTS[:1]) for kind in ("eager", "graph"))
    assert eager["step"][0] >= eager["launch"][0] > graph["step"][0] > graph["launch"][0]


def test_slopes_are_shares_of_the_step():
    """A graph's decode step is all GPU: the slowdowns and the small kernels take between all and none of it."""
    values, slopes = step_slopes(OPERATORS["graph"], POINTS, NAMES, 0.01)
    assert np.all(values["step"] > 0)
    gpu = slopes["step"][:, :4]
    assert np.all(gpu >= -1e-9)
    assert np.all(gpu.sum(axis=1) <= 1.02)
    launch = step_slopes(OPERATORS["eager"], POINTS, NAMES, 0.01)[1]["launch"]
    assert np.all(launch[:, 4] > 0.5)
    assert launch[:, :4] == pytest.approx(0.0, abs=1e-9)


def test_ranks_that_step_together_have_a_batch_each():
    """Experts of a group of two work for both ranks' tokens, as in a simulated step of the group."""
    built = scenario("olmoe-1b-7b", "a100-80gb", gpus=2, dp=2, ep=2)
    points = [decodes(12), prompt(1024)]
    sizes = largest_sizes(points)
    operators = moved_operators(built, (), *sizes)[None]
    table = steps_table(operators, points)
    tokens = table.tokens.tolist()
    assert tokens == [operators.run_size(12), 1024]
    assert table.group_tokens.tolist() == [2 * size for size in tokens]
    assert (table.decodes.tolist(), table.prompt_tokens.tolist()) == ([24, 0], [0, 2048])
    model = build_step_model(operators.layout, *sizes)
    gpu_s = [model.gpu_fixed_s(tokens[0], 2 * tokens[0], 12), model.gpu_fixed_s(1024, 2048, 1, prompt_tokens=2048)]
    simulated_s = np.array(gpu_s) + attention_seconds(operators, table)
    assert replay_seconds(operators, table, host=False) == pytest.approx(simulated_s, rel=1e-9)


@pytest.mark.parametrize(
    "built",
    [
        scenario("qwen1.5-moe-a2.7b", "h200", gpus=4, tp=2, dp=2, ep=4),
        scenario("deepseek-v3", "h200", gpus=8, dp=8, ep=8, all2all_backend="deepep_low_latency"),
        scenario("mixtral-8x7b", "mi300x", gpus=4, tp=2, pp=2),
    ],
    ids=["gathered", "deepep", "pipeline"],
)
def test_an_operator_is_evaluated_again_where_it_depends_on_the_moved_constant(built):
    moved = moved_operators(built, PARAMETER_NAMES, 2048, 64)
    for name in PARAMETER_NAMES:
        parameters = scaled(built.parameters, name, float(np.exp(0.01)))
        layout = make_layout(built.model, built.deployment, built.cluster, parameters, built.routing, built.seed)
        anew = step_operators(layout, 2048, 64)
        ours = moved.get(name, moved[None])
        assert ours.attention == anew.attention, name
        for kind in ("token_s", "routed_s", "row_s"):
            np.testing.assert_array_equal(getattr(ours, kind), getattr(anew, kind), name)


def test_a_model_cut_to_its_first_layers_keeps_dense_ones_first():
    model = get_model("deepseek-v3")
    cut = with_layers(model, model.num_dense_layers + 2)
    assert (cut.num_layers, cut.num_dense_layers, cut.num_moe_layers) == (model.num_dense_layers + 2, 3, 2)
    assert with_layers(model, None) is model
    assert with_layers(model, 1).num_moe_layers == 0
