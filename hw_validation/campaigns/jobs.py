"""What a campaign on one GPU runs, in order: one process a job, each with the most seconds it may take."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

MODELS = "olmoe-1b-7b,qwen1.5-moe-a2.7b,dbrx,qwen2-57b-a14b,mixtral-8x7b,deepseek-v3"
_ALL = "decode,prefill,mixed,closed,decode-long,closed-long,skew,kernels,open"
_STEPS = "decode,prefill,mixed,decode-long,kernels,skew"
_REPEAT = "decode,closed-spot,closed-long-spot,prefill,mixed,decode-long,closed"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`module` is run with `arguments` (`{out}` is the file it writes, `{seconds}` what it may take).

    `standby`: it understands `--standby` and is started while the job before it runs, `head_start_s` after that
    one began. `fallback` runs instead when the job fails (an exit code other than 0 and 3) without any record.
    `ranks`: as many processes, one a GPU.
    """

    name: str
    module: str
    arguments: str
    seconds: float
    suffix: str = "jsonl"
    standby: bool = False
    head_start_s: float = 2.0
    wrapper: str = ""
    ranks: int = 1
    fallback: Job | None = None


def sweep(name: str, seconds: float, arguments: str, fallback: Job | None = None) -> Job:
    """A job of `hw_validation.vllm_sweep`."""
    return Job(
        name=name,
        module="hw_validation.vllm_sweep",
        arguments=f"--out {{out}} --standby {arguments}",
        seconds=seconds,
        standby=True,
        fallback=fallback,
    )


def llada(name: str, seconds: float, model: str, runs: tuple[str, ...], options: str = "--repeats 2") -> Job:
    """A job of `hw_validation.llada`, whose JSON document is rewritten after each run."""
    words = f"--model {model} {options} --warm-ups 1 --json {{out}} " + " ".join(f"--run '{run}'" for run in runs)
    return Job(name=name, module="hw_validation.llada", arguments=words, seconds=seconds, suffix="json")


_LOOPS = "closed,closed-long-spot,decode"
_PACKED = "prefill,decode,kernels,mixed,closed-spot,redrawn,skew"
_FORCED = "--contexts 256 --capture-sizes 1,8,64,256"

_MICRO = Job(
    name="micro",
    module="hw_validation.micro",
    arguments=f"--models {MODELS} --out {{out}} --budget-s {{seconds}}",
    seconds=80,
    head_start_s=25,
)
_DEEPSEEK_BF16 = sweep(
    "deepseek-v3-bf16",
    75,
    f"--model deepseek-v3 --num-layers 5 --bf16 --contexts 256,1024 --sections {_STEPS}",
)
_COUNTERS = Job(
    name="counters",
    module="hw_validation.step_counters",
    arguments="--models olmoe-1b-7b:2 --out {out} --standby",
    seconds=60,
    standby=True,
)
_EXPERIMENT = Job(
    name="served",
    module="hw_validation",
    arguments="run hw_validation/campaigns/olmoe_server.yaml --out {out} --work-dir {out}.work "
    "--models-dir {out}.models --start-timeout-s {seconds} --hardware h200",
    seconds=170,
    head_start_s=110,
)
_DEEPSEEK = sweep(
    "deepseek-v3",
    70,
    f"--model deepseek-v3 --num-layers 5 --contexts 256,1024 --sections {_STEPS}",
    _DEEPSEEK_BF16,
)

_DENSE_RUNS = (
    "graphs=true",
    "graphs=false",
    "cache=prefix graphs=true",
    "cache=dual graphs=true",
    "batch=4 graphs=true",
    "batch=16 graphs=true",
    "cfg_scale=1 graphs=true",
    "generation_len=256 steps=128 graphs=true",
)
_EXPERT_RUNS = (
    "graphs=true",
    "expert_execution=loop",
    *_DENSE_RUNS[1:],
    "kernels=torch graphs=true",
    "expert_loads=true graphs=true",
)

_DENSE_AGAIN = (
    *_DENSE_RUNS,
    "generation_len=64 steps=32 graphs=true",
    "products=blas graphs=true",
    "graphs=true",
)
_EXPERTS_AGAIN = (
    "graphs=true",
    "expert_execution=loop",
    "cache=dual graphs=true",
    "graphs=false",
    "expert_execution=loop batch=4 steps=16",
    "expert_loads=true cache=dual graphs=true",
    "cache=prefix graphs=true",
    "batch=4 graphs=true",
    "cache=dual batch=4 graphs=true",
    "batch=16 graphs=true",
    "generation_len=256 steps=128 graphs=true",
    "graphs=true",
)
"""The last run is the first one again, and its kernels are listed."""


def tuned(name: str, seconds: float, model: str, runs: tuple[str, ...], repeats: int) -> Job:
    """A job of the LLaDA engine with the fastest products; with PyTorch's own, should those never work."""
    plain = tuple(f"{run} products=blas" for run in runs)
    job = llada(name, seconds, model, runs, f"--repeats {repeats} --profile")
    return replace(job, fallback=llada(f"{name}-blas", seconds, model, plain, f"--repeats {repeats}"))


_EVEN_RUNS = ("graphs=true", "expert_loads=true graphs=true", "expert_execution=loop", "cache=dual graphs=true")

CAMPAIGNS: dict[str, tuple[Job, ...]] = {
    "first": (
        _MICRO,
        sweep("olmoe-routing", 65, "--model olmoe-1b-7b --return-routed-experts --contexts 256 --sections routing"),
        sweep("olmoe", 120, f"--model olmoe-1b-7b --sections {_ALL}"),
        sweep("qwen1.5-moe", 130, f"--model qwen1.5-moe-a2.7b --sections {_ALL}"),
        llada("llada-moe", 75, "llada-moe-7b-a1b", _EXPERT_RUNS),
        sweep(
            "olmoe-eager",
            55,
            "--model olmoe-1b-7b --enforce-eager --contexts 256 --sections decode,prefill,kernels,closed-spot",
        ),
    ),
    "second": (
        sweep("mixtral", 200, f"--model mixtral-8x7b --contexts 256,1024 --sections {_ALL}"),
        _DEEPSEEK,
        sweep("qwen2-57b", 60, f"--model qwen2-57b-a14b --num-layers 8 --contexts 256,1024 --sections {_STEPS}"),
        sweep("dbrx", 60, f"--model dbrx --num-layers 6 --contexts 256,1024 --sections {_STEPS}"),
        llada("llada-8b", 45, "llada-8b", _DENSE_RUNS),
        _COUNTERS,
    ),
    "repeat": (
        sweep("olmoe", 85, f"--model olmoe-1b-7b --sections {_REPEAT}"),
        sweep("mixtral", 135, f"--model mixtral-8x7b --contexts 256,1024 --sections {_REPEAT}"),
        sweep("qwen1.5-moe", 85, f"--model qwen1.5-moe-a2.7b --sections {_REPEAT}"),
        Job(
            name="serving",
            module="hw_validation.serving",
            arguments="--model olmoe-1b-7b --out {out} --standby",
            seconds=130,
            standby=True,
        ),
        _COUNTERS,
        llada("llada-moe", 40, "llada-moe-7b-a1b", _EVEN_RUNS),
        _DEEPSEEK,
    ),
    "third": (
        tuned("llada-8b", 120, "llada-8b", _DENSE_AGAIN, repeats=3),
        replace(tuned("llada-moe", 110, "llada-moe-7b-a1b", _EXPERTS_AGAIN, repeats=2), head_start_s=60),
        sweep("olmoe", 130, "--model olmoe-1b-7b --sections closed,decode,closed-long-spot,open,prefill"),
        _EXPERIMENT,
        replace(_COUNTERS, arguments=_COUNTERS.arguments.replace("olmoe-1b-7b", "mixtral-8x7b")),
    ),
    "fourth": (
        tuned("llada-8b", 100, "llada-8b", _DENSE_AGAIN, repeats=3),
        replace(sweep("mixtral", 170, f"--model mixtral-8x7b --contexts 256 --sections {_LOOPS}"), head_start_s=40),
        sweep("olmoe", 110, f"--model olmoe-1b-7b --contexts 256 --sections {_LOOPS}"),
        sweep("qwen1.5-moe", 100, f"--model qwen1.5-moe-a2.7b --contexts 256 --sections {_LOOPS}"),
        replace(tuned("llada-moe", 110, "llada-moe-7b-a1b", _EXPERTS_AGAIN, repeats=2), head_start_s=60),
        sweep("qwen-forced", 90, f"--model qwen1.5-moe-a2.7b {_FORCED} --sections redrawn,forced"),
    ),
    "fifth": (
        sweep("qwen-packed", 150, f"--model qwen1.5-moe-a2.7b --contexts 256 --pack-scores --sections {_PACKED}"),
        sweep("qwen-unpacked", 110, f"--model qwen1.5-moe-a2.7b --contexts 256 --sections {_PACKED}"),
        sweep("mixtral", 190, "--model mixtral-8x7b --contexts 256 --sections decode,prefill,mixed,closed-long-spot"),
    ),
}
