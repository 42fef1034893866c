"""Tiles of vLLM's Triton experts."""

import numpy as np
import pytest

from moesim.costs.experts import deployed_kernel
from moesim.costs.layout import make_layout
from moesim.costs.triton_tiles import TileTable, shipped_tiles
from moesim.scenarios import Request, make_scenario


def kernel(hardware, model, **words):
    case = make_scenario(Request(model=model, hardware=hardware, concurrency=1, **words))
    return deployed_kernel(
        make_layout(case.model, case.deployment, case.cluster, case.parameters, case.routing, case.seed)
    )


def test_a_step_takes_the_nearest_entry():
    table = TileTable((1, 2, 8, 256), (16, 32, 64, 128), (32, 64, 128, 256), (1, 8, 16, 64))
    rows, columns, groups = table.at(np.array([1.0, 2.0, 4.0, 5.0, 6.0, 132.0, 133.0, 9000.0]))
    assert rows.tolist() == [16, 32, 32, 32, 64, 64, 128, 128]
    assert columns.tolist() == [32, 64, 64, 64, 128, 128, 256, 256]
    assert groups.tolist() == [1, 8, 8, 8, 16, 16, 64, 64]


def test_shapes_are_those_of_the_library():
    """Mixtral's experts on one H200 are tuned for; on an H100 only their halves and smaller shards are."""
    whole = shipped_tiles("h200", 8, 14336)
    assert whole is not None
    assert [each[0] for each in whole.at(np.array([256.0]))] == [128, 256, 1]
    assert shipped_tiles("h100", 8, 14336) is None
    assert shipped_tiles("h200", 64, 1024) is None


@pytest.mark.parametrize(
    ("hardware", "model", "words", "rule"),
    [
        ("h200", "olmoe-1b-7b", {}, "tokens"),
        ("h100", "qwen3-30b-a3b", {}, "tokens"),
        ("h200", "deepseek-v3", {"gpus": 8, "tp": 8}, "scaled"),
    ],
)
def test_what_has_no_table_runs_by_rule(hardware, model, words, rule):
    assert kernel(hardware, model, **words).block_rule == rule
