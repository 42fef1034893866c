"""The shipped accelerators: facts, sources, lookups and cluster checks."""

from __future__ import annotations

import msgspec
import pytest

from moesim.errors import InputError
from moesim.specs.catalog import get_hardware, list_hardware
from moesim.specs.hardware import check_accelerator, make_cluster, peak_rate

HARDWARE = sorted(list_hardware())


def test_shipped_accelerators():
    nvidia = ["a100-40gb", "a100-80gb", "b200", "b300", "gb200", "h100", "h200"]
    assert sorted(list_hardware()) == [*nvidia, "mi300x", "mi325x", "mi355x"]
    assert all(get_hardware(name).vendor == ("nvidia" if name in nvidia else "amd") for name in HARDWARE)


@pytest.mark.parametrize("name", HARDWARE)
def test_every_fact_names_its_source(name: str):
    item = get_hardware(name)
    facts = set(item.__struct_fields__) - {"name", "vendor", "aliases", "published", "sources"}
    assert set(item.sources) == facts | {f"published.{key}" for key in item.published}
    assert all(source.strip() for source in item.sources.values())


@pytest.mark.parametrize("name", HARDWARE)
def test_visible_memory_is_near_the_marketed_size(name: str):
    """Marketing counts GB of 10^9 or 2^30 bytes; the driver shows between 95 and 108 percent of 10^9."""
    item = get_hardware(name)
    assert 0.95 < item.hbm_bytes_visible / (item.published["hbm_gb"] * 1e9) < 1.08


@pytest.mark.parametrize("name", HARDWARE)
def test_measured_figures_stay_below_the_data_sheet(name: str):
    item = get_hardware(name)
    ceilings = {
        "stream": item.hbm_bandwidth_bytes_per_s,
        "weight": item.hbm_bandwidth_bytes_per_s,
        "gemm_bf16": peak_rate(item, "bf16"),
        "gemm_fp8": peak_rate(item, "fp8"),
        "alltoall": item.fabric.bandwidth_bytes_per_s,
        "link": item.fabric.link_bandwidth_bytes_per_s,
        "p2p": item.fabric.link_bandwidth_bytes_per_s,
    }
    for key, value in item.published.items():
        ceiling = next((limit for prefix, limit in ceilings.items() if key.startswith(prefix)), float("inf"))
        assert 0 < value < ceiling, key


@pytest.mark.parametrize("name", HARDWARE)
def test_lookup_by_alias_in_any_case(name: str):
    item = get_hardware(name)
    assert all(get_hardware(key.upper()) is item for key in (item.name, *item.aliases))


def test_aliases_are_unique():
    keys = [key.lower() for item in list_hardware().values() for key in (item.name, *item.aliases)]
    assert len(keys) == len(set(keys))


def test_fabric_kinds():
    for name in HARDWARE:
        fabric = get_hardware(name).fabric
        if name.startswith("mi"):
            assert fabric.kind == "mesh"
            assert fabric.bandwidth_bytes_per_s == pytest.approx(7 * fabric.link_bandwidth_bytes_per_s)
        else:
            assert fabric.kind == "switch"
            assert fabric.bandwidth_bytes_per_s == fabric.link_bandwidth_bytes_per_s


def test_missing_formats_are_expanded_to_bf16():
    assert peak_rate(get_hardware("a100-80gb"), "fp8") == 312e12
    assert peak_rate(get_hardware("h200"), "fp4") == 989e12
    assert peak_rate(get_hardware("b200"), "fp4") == 9000e12


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="mi300x"):
        get_hardware("mi300")


def test_clusters_fill_the_fewest_nodes():
    h200 = get_hardware("h200")
    assert make_cluster(h200, 16).num_nodes == 2
    assert make_cluster(get_hardware("gb200"), 72).num_nodes == 1
    assert make_cluster(h200, 8, 4).accelerators_per_node == 2


@pytest.mark.parametrize(
    ("gpus", "nodes", "field"), [(0, None, "gpus"), (8, 3, "gpus"), (16, 1, "nodes"), (8, 0, "nodes")]
)
def test_impossible_clusters_are_refused(gpus: int, nodes: int | None, field: str):
    with pytest.raises(InputError, match=f"^{field}: "):
        make_cluster(get_hardware("h100"), gpus, nodes)


@pytest.mark.parametrize(
    "change",
    [
        {"hbm_bytes_visible": 0},
        {"hbm_bandwidth_bytes_per_s": float("inf")},
        {"num_compute_units": -1},
        {"peak_flops_per_s": {"fp8": 1e12}},
        {"peak_flops_per_s": {"bf16": 0.0}},
    ],
)
def test_impossible_accelerators_are_refused(change: dict[str, object]):
    with pytest.raises(InputError, match=f"here: {next(iter(change))}"):
        check_accelerator(msgspec.structs.replace(get_hardware("h100"), **change), "here")
