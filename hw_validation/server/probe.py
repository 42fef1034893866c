"""What a running server really is, and how that differs from the plan. What cannot be read counts as different."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import msgspec

from hw_validation.experiment.runs import Server
from moesim.errors import InputError

Lookup = Callable[[str, str], Any]
MISSING = "not told"
_INFO_TIMEOUT_S = 120.0
"""The first answer lists the machine's packages and links by starting a dozen programs."""


class ServerMismatchError(InputError):
    """A server that is not the planned one; its runs are not recorded."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine said of itself, under the plan's names; `version` is the engine's."""

    version: str
    values: dict[str, Any]


def read_facts(base_url: str) -> Facts:
    """Ask a server for its model, version and resolved configuration.

    Raises:
        ServerMismatchError: no answer, or no /server_info (the server was not started in development mode).
    """
    models = get_json(f"{base_url}/v1/models")
    names = [item.get("id") for item in models.get("data", [])]
    version = get_json(f"{base_url}/version").get("version", MISSING)
    try:
        info = get_json(f"{base_url}/server_info?config_format=json", _INFO_TIMEOUT_S)
    except ServerMismatchError as error:
        raise ServerMismatchError(f"{error}; start it with VLLM_SERVER_DEV_MODE=1, or it cannot be probed") from None
    config, variables = info.get("vllm_config"), info.get("vllm_env", {})
    if not isinstance(config, dict):
        raise ServerMismatchError(f"{base_url}/server_info: vllm_config is no object but {type(config).__name__}")
    values = collect(lambda part, name: config.get(part, {}).get(name, MISSING))
    values["served_models"] = names
    values["routing_strategy"] = variables.get("VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "")
    return Facts(version=str(version), values=values)


def collect(lookup: Lookup) -> dict[str, Any]:
    """The facts of an engine configuration; `lookup(part, name)` reads for example parallel_config, enable_eplb."""
    parallel = ("tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size")
    values: dict[str, Any] = {name: lookup("parallel_config", name) for name in parallel}
    for name in ("enable_expert_parallel", "all2all_backend", "enable_eplb", "expert_placement_strategy"):
        values[name] = lookup("parallel_config", name)
    for name in ("model", "enforce_eager", "max_model_len", "quantization", "dtype"):
        values[name] = lookup("model_config", name)
    for name in ("max_num_seqs", "max_num_batched_tokens", "enable_chunked_prefill", "async_scheduling"):
        values[name] = lookup("scheduler_config", name)
    for name in ("enable_prefix_caching", "cache_dtype", "block_size", "num_gpu_blocks"):
        values[name] = lookup("cache_config", name)
    values["load_format"] = lookup("load_config", "load_format")
    values["cudagraph_mode"] = graph_mode(lookup("compilation_config", "cudagraph_mode"))
    values["cudagraph_capture_sizes"] = lookup("compilation_config", "cudagraph_capture_sizes")
    return values


def check_facts(server: Server, facts: Facts, where: str) -> None:
    """Refuse an engine that is not the planned one.

    Raises:
        ServerMismatchError: naming every setting that differs, planned and found.
    """
    differences = list(differing(server, facts))
    if differences:
        raise ServerMismatchError(f"{where} is not the planned {server.name}: {'; '.join(differences)}")


def differing(server: Server, facts: Facts) -> Iterator[str]:
    """Each setting that differs, as "name: planned X, found Y"."""
    found = facts.values
    if "served_models" in found and server.model.huggingface_id not in found["served_models"]:
        yield f"model: planned {server.model.huggingface_id}, found {', '.join(map(str, found['served_models']))}"
    for name, planned in planned_facts(server).items():
        value = found.get(name, MISSING)
        if _plain(value) != _plain(planned):
            yield f"{name}: planned {planned}, found {value}"
    graphs = found.get("cudagraph_mode", MISSING)
    if not server.deployment.enforce_eager and graphs in ("NONE", MISSING):
        yield f"cudagraph_mode: planned graphs, found {graphs}"


def graph_mode(value: Any) -> str:
    """The name of vLLM's CUDAGraphMode, which JSON shows by value: a number, or a pair (decode, mixed).

    >>> graph_mode([2, 1]), graph_mode(0), graph_mode("FULL")
    ('FULL_AND_PIECEWISE', 'NONE', 'FULL')
    """
    plain = getattr(value, "value", value)
    key = tuple(plain) if isinstance(plain, list | tuple) else plain
    names = {0: "NONE", 1: "PIECEWISE", 2: "FULL", (2, 0): "FULL_DECODE_ONLY", (2, 1): "FULL_AND_PIECEWISE"}
    return names.get(key, str(value).rsplit(".", 1)[-1])


def planned_facts(server: Server) -> dict[str, Any]:
    """What a server of the plan must say of itself. Replicas are servers of their own."""
    size, measurement = server.deployment, server.measurement
    spread = size.expert_parallel_size > 1
    facts: dict[str, Any] = {
        "tensor_parallel_size": size.tensor_parallel_size,
        "data_parallel_size": size.lockstep_ranks,
        "pipeline_parallel_size": size.pipeline_parallel_size,
        "enable_expert_parallel": spread,
        "enable_eplb": measurement.eplb is not None,
        "enforce_eager": size.enforce_eager,
        "max_model_len": size.max_model_len,
        "max_num_seqs": size.max_num_seqs,
        "max_num_batched_tokens": size.max_num_batched_tokens,
        "enable_prefix_caching": size.enable_prefix_caching,
        "enable_chunked_prefill": size.enable_chunked_prefill,
        "load_format": measurement.load_format,
        "routing_strategy": measurement.routing_strategy,
    }
    if size.quantization != "none":
        facts["quantization"] = size.quantization
    if size.kv_cache_dtype != "auto":
        facts["cache_dtype"] = size.kv_cache_dtype
    if spread and size.data_parallel_size > 1:
        facts["all2all_backend"] = size.all2all_backend
    if spread and measurement.eplb is None:
        facts["expert_placement_strategy"] = size.expert_map
    return facts


def _plain(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def get_json(url: str, timeout_s: float = 30.0) -> dict[str, Any]:
    """The JSON object at `url`. Raises ServerMismatchError without one."""
    try:
        with urlopen(url, timeout=timeout_s) as answer:
            document = json.load(answer)
    except HTTPError as error:
        raise ServerMismatchError(f"{url}: answers {error.code} {error.reason}") from None
    except (URLError, OSError, ValueError) as error:
        raise ServerMismatchError(f"{url}: no JSON answer ({error})") from None
    if not isinstance(document, dict):
        raise ServerMismatchError(f"{url}: answers {type(document).__name__}, not an object")
    return document


def post(url: str, timeout_s: float = 60.0) -> None:
    """An empty POST. Raises ServerMismatchError when it is not answered with success."""
    try:
        with urlopen(HttpRequest(url, data=b"", method="POST"), timeout=timeout_s):
            return
    except HTTPError as error:
        raise ServerMismatchError(f"{url}: answers {error.code} {error.reason}") from None
    except (URLError, OSError) as error:
        raise ServerMismatchError(f"{url}: no answer ({error})") from None
