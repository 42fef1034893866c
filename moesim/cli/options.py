"""Options shared by the verbs, each declared once."""

from __future__ import annotations

from typing import Annotated

import typer

_WHAT, _SIZES, _LOAD, _ENGINE, _DIFFUSION, _OUT = (
    "What runs where",
    "Parallel sizes",
    "Load",
    "Engine (vLLM's words and defaults)",
    "Masked diffusion",
    "Output",
)


def _flag(name: str, text: str, panel: str) -> typer.models.OptionInfo:
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=True)


ModelName = Annotated[str, _flag("--model", "Model name, Hugging Face id, or path to a config.json.", _WHAT)]
HardwareName = Annotated[str, _flag("--hardware", "Accelerator, for example h200 or mi300x.", _WHAT)]
Gpus = Annotated[int | None, _flag("--gpus", "Accelerators in all.", _WHAT)]
Nodes = Annotated[int | None, _flag("--nodes", "Nodes they are spread over (default: the fewest).", _WHAT)]
Seed = Annotated[int, _flag("--seed", "Seed of every random draw.", _WHAT)]
RoutingText = Annotated[
    str,
    _flag(
        "--routing",
        "uniform, zipf[:1.2], falling[:1.2], power_law[:1.2], eighty_twenty[:0.9], dirichlet[:0.3], identical, "
        "or a file of counts.",
        _WHAT,
    ),
]
ParameterFile = Annotated[
    str | None, _flag("--parameters", "Parameter set by name or YAML file (default: the best for the hardware).", _WHAT)
]
Tp = Annotated[int | None, _flag("--tp", "Tensor-parallel size (default: what gpus leave).", _SIZES)]
Dp = Annotated[int | None, _flag("--dp", "Data-parallel size (independent replicas unless --ep).", _SIZES)]
Ep = Annotated[int | None, _flag("--ep", "Expert-parallel size (vLLM: tp x dp).", _SIZES)]
Pp = Annotated[int, _flag("--pp", "Pipeline-parallel size.", _SIZES)]
ExpertMap = Annotated[str, _flag("--expert-map", "linear or round_robin.", _SIZES)]
RedundantExperts = Annotated[
    int | None,
    _flag("--redundant-experts", "Replicas beside the model's experts, over all ranks (EPLB's plan).", _SIZES),
]
PlacementFile = Annotated[
    str | None, _flag("--placement", "Expert map: JSON of moesim place or SGLang, or a .txt of vLLM flags.", _SIZES)
]
EnableEplb = Annotated[bool, _flag("--enable-eplb", "Place experts anew while running, as EPLB does.", _SIZES)]
EplbWindow = Annotated[int, _flag("--eplb-window", "Steps of load that a new placement looks at.", _SIZES)]
EplbInterval = Annotated[int, _flag("--eplb-interval", "Steps between placements.", _SIZES)]
EplbSync = Annotated[bool, _flag("--eplb-sync", "All ranks wait while weights move.", _SIZES)]
DriftSteps = Annotated[int, _flag("--drift-steps", "Engine steps in which the hot experts change (0: never).", _WHAT)]
AllToAllName = Annotated[
    str,
    _flag("--all2all-backend", "allgather_reducescatter, deepep_high_throughput or deepep_low_latency.", _SIZES),
]
MoeBackendName = Annotated[str, _flag("--moe-backend", "Fused experts: triton, or aiter (AMD only).", _ENGINE)]
InputLen = Annotated[int, _flag("--input-len", "Prompt tokens.", _LOAD)]
OutputLen = Annotated[int, _flag("--output-len", "Output tokens (autoregressive models).", _LOAD)]
RangeRatio = Annotated[float, _flag("--range-ratio", "Lengths are uniform within +- this share.", _LOAD)]
Concurrency = Annotated[int | None, _flag("--concurrency", "Closed loop: requests kept in flight.", _LOAD)]
RequestRate = Annotated[float | None, _flag("--request-rate", "Open loop: requests/s (inf: all at once).", _LOAD)]
Burstiness = Annotated[float, _flag("--burstiness", "Shape of the arrival gaps (1: Poisson, below: bursty).", _LOAD)]
TraceFile = Annotated[str | None, _flag("--trace", "CSV/JSONL of arrival_s, input_tokens, output_tokens.", _LOAD)]
NumPrompts = Annotated[int | None, _flag("--num-prompts", "Requests (default: 4 waves, at least 100).", _LOAD)]
SharedPrefix = Annotated[int, _flag("--shared-prefix-len", "First tokens that all prompts share.", _LOAD)]
CachedPrefix = Annotated[int, _flag("--cached-prefix-len", "First tokens already cached before the run.", _LOAD)]
FrontendName = Annotated[
    str | None, _flag("--frontend", "server, or offline (vllm.LLM in process) (default: server).", _ENGINE)
]
MaxNumSeqs = Annotated[
    int | None, _flag("--max-num-seqs", "Most sequences in flight a rank: the queue depth.", _ENGINE)
]
MaxBatchedTokens = Annotated[int | None, _flag("--max-num-batched-tokens", "Token budget of a step.", _ENGINE)]
MaxModelLen = Annotated[int | None, _flag("--max-model-len", "Longest sequence (default: the model's).", _ENGINE)]
EnforceEager = Annotated[bool, _flag("--enforce-eager", "No CUDA/HIP graphs.", _ENGINE)]
PrefixCaching = Annotated[
    bool, _flag("--enable-prefix-caching/--no-enable-prefix-caching", "Reuse the KV cache of equal prefixes.", _ENGINE)
]
ChunkedPrefill = Annotated[
    bool, _flag("--enable-chunked-prefill/--no-enable-chunked-prefill", "Split long prompts over steps.", _ENGINE)
]
AsyncScheduling = Annotated[
    bool, _flag("--async-scheduling/--no-async-scheduling", "Prepare the next step while one runs.", _ENGINE)
]
KvDtype = Annotated[str, _flag("--kv-cache-dtype", "auto, bfloat16 or fp8.", _ENGINE)]
Quantization = Annotated[
    str | None,
    _flag("--quantization", "fp8, fp8_block, int4, mxfp4, nvfp4 or none (default: the checkpoint).", _ENGINE),
]
MemoryUtilization = Annotated[float, _flag("--gpu-memory-utilization", "Share of memory the engine takes.", _ENGINE)]
GenerationLen = Annotated[int | None, _flag("--generation-len", "Tokens to generate.", _DIFFUSION)]
Steps = Annotated[int | None, _flag("--steps", "Denoising forwards in all.", _DIFFUSION)]
BlockLen = Annotated[int | None, _flag("--block-len", "Block length in tokens.", _DIFFUSION)]
CfgScale = Annotated[float, _flag("--cfg-scale", "Classifier-free guidance; above 0 doubles the batch.", _DIFFUSION)]
CacheName = Annotated[str | None, _flag("--cache", "none, prefix or dual.", _DIFFUSION)]
ExpertExecution = Annotated[
    str, _flag("--expert-execution", "grouped (one GEMM) or loop (a call an expert).", _DIFFUSION)
]
AsJson = Annotated[bool, _flag("--json", "Print JSON (stable keys) instead of tables.", _OUT)]
CsvFile = Annotated[str | None, _flag("--csv", "Also write the rows to this CSV file ('-': stdout).", _OUT)]
