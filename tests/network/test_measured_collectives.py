"""Collectives in captured graphs on two H100, which no set is fitted to."""

from pathlib import Path

import numpy as np
import pytest

from calibration.readers import read_measurements
from moesim.network.collectives import engine_all_gather_s, engine_all_reduce_s, node_group
from moesim.specs.catalog import get_hardware
from moesim.specs.parameters import read_set

DATA = sorted((Path(__file__).parents[2] / "calibration/data/h100x2").glob("collectives*.jsonl.gz"))
SECONDS = {"all_gather": engine_all_gather_s, "reduce_scatter": engine_all_gather_s}


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.name.partition(".")[0])
def test_small_messages_of_a_ring_take_what_they_took(path):
    constants = read_set("h100-vllm")
    group = node_group(get_hardware("h100"), constants, 2)
    errors = []
    for item in read_measurements(path):
        if item.point.get("graph") and item.point["operation"] in SECONDS:
            message = np.array(float(item.point["num_bytes"]))
            seconds = SECONDS[item.point["operation"]](group, constants, message)
            errors.append(abs(float(seconds) * 1e6 / item.values["time_us"] - 1))
    assert len(errors) > 10
    assert np.median(errors) < 0.05
    assert max(errors) < 0.15


def test_the_kernel_over_peer_memory_needs_no_more_in_a_graph():
    constants = read_set("h100-vllm")
    group = node_group(get_hardware("h100"), constants, 2)
    small, large = (engine_all_reduce_s(group, constants, np.array(size)) for size in (1e5, 1e8))
    assert small < group.ring.seconds(2, 1e5, 5e4)
    assert large > group.ring.seconds(2, 1e8, 5e7) + constants["ring_graph_s"] * 0.99
    assert engine_all_gather_s(node_group(get_hardware("h100"), constants, 1), constants, np.array(1e6)) == 0.0
