"""DeepEP exchanges: copies, compute units, adapters."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from moesim.network.deepep import Exchange, high_throughput_s, low_latency_s
from moesim.specs.catalog import get_hardware
from moesim.specs.parameters import select_parameters

H100, H200 = get_hardware("h100"), get_hardware("h200")


def sent(tokens, nodes: int = 1, **words) -> Exchange:
    fields = {"hidden": 7168.0, "top_k": 8.0, "experts": 256.0, "destinations": 5.25, **words}
    return Exchange(np.asarray(tokens, dtype=float), local_size=8, num_nodes=nodes, **fields)


@pytest.mark.parametrize("combine", [False, True])
def test_low_latency_grows_with_tokens_nodes_and_top_k(combine):
    def seconds(**words):
        return low_latency_s(H200, select_parameters(H200), sent(**words), combine)

    assert (np.diff(seconds(tokens=np.arange(1, 500))) >= 0).all()
    assert seconds(tokens=[128], top_k=8.0) > seconds(tokens=[128], top_k=4.0)
    assert seconds(tokens=[128], nodes=4) > seconds(tokens=[128], nodes=2) > seconds(tokens=[128])


@pytest.mark.parametrize(
    ("nodes", "dispatch_us", "combine_us"), [(1, 36.7, 67.0), (2, 102.1, 186.2), (4, 143.0, 263.3), (8, 166.8, 304.7)]
)
def test_low_latency_meets_measured_h100_clusters(nodes, dispatch_us, combine_us):
    """hardware.yaml: 128 tokens, hidden 7168, top-8 of 256 experts (AIConfigurator tables); never fitted here."""
    constants = select_parameters(H100)
    found = [float(low_latency_s(H100, constants, sent([128], nodes), combine)[0]) for combine in (False, True)]
    assert found == pytest.approx([dispatch_us * 1e-6, combine_us * 1e-6], rel=0.2)


@pytest.mark.parametrize("combine", [False, True])
def test_more_compute_units_help_until_the_links_are_full(combine):
    constants = select_parameters(H200)
    moved = sent([16_384])
    times = [float(high_throughput_s(H200, constants, moved, combine, units)[0]) for units in (4, 8, 16, 24, 96)]
    assert all(late < early for early, late in pairwise(times))
    assert times[0] / times[1] == pytest.approx(2, rel=0.1)
    width = 2.0 if combine else 1.0
    leg = "combine" if combine else "dispatch"
    link = 16_384 * 5.25 * 7 / 8 * 7168 * width / (450e9 * constants[f"deepep_ht_{leg}_efficiency"])
    assert times[-1] == pytest.approx(link, rel=0.1)


def test_bf16_dispatches_move_twice_the_bytes():
    constants = select_parameters(H200)
    both = [sent([4096], dispatch_bytes=size) for size in (1.0, 2.0)]
    narrow, wide = (low_latency_s(H200, constants, item, combine=False)[0] for item in both)
    assert wide / narrow == pytest.approx(2 / (1 + 4 / 128), rel=0.05)
