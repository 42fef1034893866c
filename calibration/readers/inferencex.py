"""Engine flags of the InferenceX launch scripts, which the silicon points do not record.

Source: SemiAnalysisAI/InferenceX, benchmarks/single_node/fixed_seq_len/*.sh (state of 2026-04 to 2026-08), one
script a model, precision and accelerator. Scripts changed over time; where a version is known to have run with
other flags it is told apart, the rest takes the later script.
"""

from __future__ import annotations

from typing import Any

_BLACKWELL = ("b200", "b300", "gb200")
_GRAPHS = 2048


def launch_flags(model: str, hardware: str, backend: str, version: str, row: dict[str, Any]) -> dict[str, Any]:
    """Words of a request that the launch script set.

    Args:
        row: `concurrency`, `isl` (nominal tokens), `quantization` ("none" or "nvfp4"), `tp`.
    """
    blackwell = hardware in _BLACKWELL
    if backend == "sglang":
        return _sglang(blackwell, row)
    if model == "gpt-oss-120b":
        common = {"max_num_batched_tokens": 8192, "max_cudagraph_capture_size": _GRAPHS}
        return common | ({"kv_cache_dtype": "fp8", "max_num_seqs": 512} if blackwell else _own_limit(row))
    if model == "kimi-k2.5":
        if row["quantization"] == "nvfp4":
            return _tuned(row) | _own_limit(row)
        return {"gpu_memory_utilization": 0.95, **_own_limit(row)}
    return _minimax(hardware, version, row) if model == "minimax-m2.5" else {}


def _minimax(hardware: str, version: str, row: dict[str, Any]) -> dict[str, Any]:
    if hardware in _BLACKWELL:
        return {"gpu_memory_utilization": 0.95} if version == "0.17.0" else _tuned(row)
    if hardware == "h200":
        return {"gpu_memory_utilization": 0.95, "ep": row["tp"]}
    return {"max_num_seqs": 256}


def _own_limit(row: dict[str, Any]) -> dict[str, Any]:
    return {"max_num_seqs": row["concurrency"]}


def _tuned(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "kv_cache_dtype": "fp8",
        "max_num_batched_tokens": max(2 * row["isl"], 1024),
        "max_cudagraph_capture_size": _GRAPHS,
    }


def _sglang(blackwell: bool, row: dict[str, Any]) -> dict[str, Any]:
    """DeepSeek-R1 and V3: chunked prefill and running requests are limited as the scripts say.

    The later script's limit of 128 at TP 8 did not hold: points of 256 and 512 callers wait no longer than a prompt.
    """
    if not blackwell:
        return {"max_num_batched_tokens": 32768, "max_num_seqs": 512, "gpu_memory_utilization": 0.88}
    if row["quantization"] == "nvfp4":
        return {
            "kv_cache_dtype": "fp8",
            "max_num_batched_tokens": 16384,
            "max_num_seqs": 256,
            "gpu_memory_utilization": 0.9,
        }
    chunk, limit = (32768, row["concurrency"]) if row["tp"] == 8 else (8192, 32)
    return {
        "kv_cache_dtype": "fp8",
        "max_num_batched_tokens": chunk,
        "max_num_seqs": limit,
        "gpu_memory_utilization": 0.95,
    }
