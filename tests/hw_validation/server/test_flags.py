from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hw_validation.experiment.measurement import Eplb, Measurement
from hw_validation.experiment.runs import Server, make_server
from hw_validation.server.flags import serve_command
from hw_validation.server.offline import engine_facts, engine_words
from hw_validation.server.probe import Facts, check_facts, differing, graph_mode, planned_facts
from hw_validation.server.variables import server_variables
from moesim.errors import InputError
from moesim.scenarios import Request, make_scenario


def server(measurement: Measurement | None = None, **words: Any) -> Server:
    request = Request(**{"model": "mixtral-8x7b", "hardware": "h200", "gpus": 8, **words})
    return make_server(make_scenario(request), measurement or Measurement())


def flags(item: Server, node: int = 0) -> str:
    return " ".join(serve_command(item, Path("m"), 8000, node, "10.0.0.1"))


def test_tensor_parallel_names_no_other_size() -> None:
    text = flags(server(tp=8))
    assert "--tensor-parallel-size 8" in text
    assert "data-parallel" not in text
    assert "expert" not in text


def test_data_and_expert_parallel_with_backend_and_eplb() -> None:
    eplb = Measurement(eplb=Eplb(num_redundant_experts=8))
    text = flags(server(eplb, tp=1, dp=8, ep=8, all2all_backend="deepep_low_latency"))
    assert "--data-parallel-size 8" in text
    assert "--enable-expert-parallel" in text
    assert "--all2all-backend deepep_low_latency" in text
    config = text.split("--eplb-config ")[1].split()[0]
    assert json.loads(config)["num_redundant_experts"] == 8


def test_eplb_without_spread_experts_is_refused() -> None:
    with pytest.raises(InputError, match="spreads no experts"):
        flags(server(Measurement(eplb=Eplb()), tp=8))


def test_independent_replicas_are_single_servers() -> None:
    item = server(tp=1, dp=8)
    assert "data-parallel" not in flags(item)
    assert planned_facts(item)["data_parallel_size"] == 1


def test_ranks_of_two_nodes_add_up() -> None:
    item = server(model="deepseek-v3", gpus=16, nodes=2, tp=1, dp=16, ep=16)
    first, second = flags(item), flags(item, node=1)
    assert "--data-parallel-size 16 --data-parallel-size-local 8 --data-parallel-address 10.0.0.1" in first
    assert "--headless" not in first
    assert "--headless --data-parallel-start-rank 8" in second


def test_rank_over_two_nodes_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit the 8 GPUs of a node"):
        flags(server(model="deepseek-v3", gpus=16, nodes=2, tp=16))


def test_eager_and_dummy_are_said_and_graphs_are_not() -> None:
    text = flags(server(Measurement(load_format="dummy"), tp=8, enforce_eager=True))
    assert "--enforce-eager" in text
    assert "--load-format dummy" in text
    assert "--enforce-eager" not in flags(server(tp=8))


def test_amd_servers_get_fast_kernels_and_nvidia_servers_do_not() -> None:
    amd = server_variables(server(hardware="mi300x", tp=8), range(2))
    assert amd["VLLM_ROCM_USE_AITER"] == amd["TORCH_BLAS_PREFER_HIPBLASLT"] == "1"
    assert amd["HIP_VISIBLE_DEVICES"] == "0,1"
    nvidia = server_variables(server(tp=8), range(2))
    assert nvidia["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert not [name for name in nvidia if "ROCM" in name or "HIP" in name]


def test_file_wins_over_defaults_and_routing_is_forced() -> None:
    measurement = Measurement(routing_strategy="zipf_1.2", environment={"VLLM_ROCM_USE_AITER": "0"})
    found = server_variables(server(measurement, hardware="mi300x", tp=8))
    assert found["VLLM_ROCM_USE_AITER"] == "0"
    assert found["VLLM_MOE_ROUTING_SIMULATION_STRATEGY"] == "zipf_1.2"


def test_number_formats_that_were_asked_for_are_probed() -> None:
    planned = planned_facts(server(tp=8, quantization="fp8", kv_cache_dtype="fp8"))
    assert (planned["quantization"], planned["cache_dtype"]) == ("fp8", "fp8")
    assert not {"quantization", "cache_dtype"} & set(planned_facts(server(tp=8)))


class Part:
    """A piece of vLLM's configuration that has every attribute it is given."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def config(item: Server, **changes: Any) -> Part:
    """The configuration an engine in this process would resolve to, for the planned server."""
    planned = planned_facts(item) | {"cudagraph_mode": Part(value=(2, 1), name="FULL_AND_PIECEWISE")} | changes
    everything = Part(**planned)
    names = ("parallel", "model", "scheduler", "cache", "load", "compilation")
    return Part(**{f"{name}_config": everything for name in names})


def test_offline_engine_is_held_against_the_plan_in_process() -> None:
    item = server(gpus=1, model="olmoe-1b-7b", frontend="offline")
    check_facts(item, engine_facts(config(item), "0.23"), "the engine")
    other = engine_facts(config(item, max_num_batched_tokens=1), "0.23")
    assert list(differing(item, other)) == ["max_num_batched_tokens: planned 16384, found 1"]


def test_facts_that_are_not_told_differ() -> None:
    item = server(gpus=1, model="olmoe-1b-7b")
    names = {line.partition(":")[0] for line in differing(item, Facts(version="1", values={}))}
    assert names == set(planned_facts(item)) | {"cudagraph_mode"}


def test_offline_words_ask_for_routed_experts() -> None:
    words = engine_words(server(Measurement(return_routed_experts=True), frontend="offline", tp=8, ep=8), "m")
    assert words["enable_return_routed_experts"] is True
    assert words["enable_expert_parallel"] is True
    assert words["tensor_parallel_size"] == 8


@pytest.mark.parametrize(
    ("value", "name"), [(0, "NONE"), ([2, 1], "FULL_AND_PIECEWISE"), ("CUDAGraphMode.FULL", "FULL")]
)
def test_graph_modes_have_names(value: Any, name: str) -> None:
    assert graph_mode(value) == name
