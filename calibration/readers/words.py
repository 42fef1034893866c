"""Other tools' names in the simulator's words: engine flags, measured values, accelerators."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from calibration.metrics import METRICS
from moesim.errors import InputError
from moesim.specs.catalog import get_hardware, list_hardware
from moesim.specs.deployment import AllToAll

_SAME = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "enforce_eager",
    "async_scheduling",
    "gpu_memory_utilization",
    "enable_prefix_caching",
    "enable_chunked_prefill",
)
_RENAMED = {
    "prefix_caching": "enable_prefix_caching",
    "chunked_prefill": "enable_chunked_prefill",
    "tensor_parallel_size": "tp",
    "data_parallel_size": "dp",
    "pipeline_parallel_size": "pp",
    "gpus": "gpus",
    "enable_eplb": "enable_eplb",
    "eplb_window": "eplb_window",
    "eplb_interval": "eplb_interval",
    "eplb_sync": "eplb_sync",
}
_VALUES = {
    "output_tokens_per_s": "output_tok_per_s",
    "total_tokens_per_s": "total_tok_per_s",
    "duration_s": "elapsed_s",
}
_SITE_CHARS = 8
_STATISTICS = re.compile(r"^(ttft|tpot|itl|e2e)_(mean|median|p50|p90|p99)_ms$")


def site_of(environment: Mapping[str, Any]) -> str:
    """The machine that a record was made on: the first characters of its start; '' where it names none."""
    return str(environment.get("machine_start", ""))[:_SITE_CHARS]


def engine_words(flags: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's resolved flags as words of a request."""
    words = {name: flags[name] for name in _SAME if _known(flags.get(name))}
    words |= {word: flags[name] for name, word in _RENAMED.items() if _known(flags.get(name))}
    words |= _expert_words(flags)
    sizes = flags.get("cudagraph_capture_sizes")
    if isinstance(sizes, list) and sizes and all(isinstance(size, int) for size in sizes):
        words["max_cudagraph_capture_size"] = max(sizes)
    cache = str(flags.get("kv_cache_dtype", "auto"))
    if cache != "auto" and "fp8" in cache:
        words["kv_cache_dtype"] = "fp8"
    return words


def _expert_words(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Expert parallelism: vLLM spreads whole experts over all tensor- and data-parallel ranks, or none."""
    if flags.get("enable_expert_parallel") is not True:
        return {}
    sizes = [flags.get(name, 1) for name in ("tensor_parallel_size", "data_parallel_size")]
    words: dict[str, Any] = {"ep": sizes[0] * sizes[1]} if all(isinstance(size, int) for size in sizes) else {}
    if isinstance(backend := flags.get("all2all_backend"), str) and backend in get_args(AllToAll):
        words["all2all_backend"] = backend
    if flags.get("num_redundant_experts"):
        words["redundant_experts"] = flags["num_redundant_experts"]
    return words


def measured_values(values: Mapping[str, float]) -> dict[str, float]:
    """The values that can be compared with a simulation, under the names of `moesim validate`."""
    found: dict[str, float] = {}
    for name, value in values.items():
        word = _VALUES.get(name, name)
        if match := _STATISTICS.match(word):
            word = f"{match[1]}_{'p50' if match[2] == 'median' else match[2]}_ms"
        if word in METRICS and value > 0:
            found[word] = value
    return found


def find_accelerator(text: str) -> str:
    """Catalogue name of what a driver calls a card ("NVIDIA H100 80GB HBM3"). Raises InputError when unknown."""
    if not text:
        raise InputError(
            "the hardware is not recorded: give hardware, gpus and tp with vllm bench's --metadata, or in a file of "
            "the same name ending in .meta.yaml beside it"
        )
    try:
        return get_hardware(text).name
    except InputError:
        plain = text.lower().replace(" ", "-").removeprefix("nvidia-").removeprefix("amd-instinct-")
        exact = plain.removesuffix("-vf").replace("-hbm3", "").replace("-hbm3e", "").replace("-oam", "")
        for item in list_hardware().values():
            if exact in (item.name, *item.aliases) or exact.split("-")[0] == item.name:
                return item.name
        raise


def _known(value: Any) -> bool:
    return isinstance(value, bool | int | float)
