"""What a campaign on 2, 4 or 8 GPUs of a machine runs: collectives, then models split over the GPUs in several ways.

Four campaigns a machine, `2gpus-first` to `2gpus-fourth`, the most valuable jobs first; `kernels` of steps that
exchange tokens; and on more than two GPUs `hybrid`: replicas of two GPUs each. Models are small enough for two GPUs of
80 GB. Sweeps of one GPU on the same machine are there to compare with.
"""

from __future__ import annotations

from msgspec.structs import replace

from hw_validation.campaigns.jobs import Job, llada, sweep

_PARALLEL = "decode-parallel,closed-parallel,prefill,closed-long-parallel,mixed"
_EXPERTS = "decode-parallel,closed-parallel,prefill,rank-skew,closed-long-parallel,mixed"
_QWEN = "--model qwen1.5-moe-a2.7b --contexts 256"
_MIXTRAL = "--model mixtral-8x7b --contexts 256"
_QWEN3 = "--model qwen3-30b-a3b --num-layers 24 --contexts 256"
_EPLB = f"{_QWEN3} --max-captured-tokens 256"
_FORCED = "--capture-sizes 1,8,64,256 --sections forced"
_MOVED = "--capture-sizes 1,8,16,32,64,256 --sections forced-settle,forced-worst"


def make_campaigns(ranks: int) -> dict[str, tuple[Job, ...]]:
    """The campaigns on `ranks` GPUs by name."""
    tp, dp = f"--tensor-parallel-size {ranks}", f"--data-parallel-size {ranks} --enable-expert-parallel"
    eplb = f"--eplb-interval 200 --num-redundant-experts {ranks}"
    first = (
        _over(ranks, _collectives()),
        _split(ranks, "qwen-tp", 110, f"{_QWEN} {tp} --sections {_PARALLEL},kernels"),
        _split(ranks, "qwen-dp-ep", 150, f"{_QWEN} {dp} --sections {_EXPERTS}"),
        _split(ranks, "mixtral-tp", 125, f"{_MIXTRAL} {tp} --sections {_PARALLEL}"),
        _split(ranks, "qwen-tp-ep", 90, f"{_QWEN} {tp} --enable-expert-parallel --sections {_EXPERTS}"),
    )
    second = (
        _split(ranks, "mixtral-dp-ep", 130, f"{_MIXTRAL} {dp} --sections {_EXPERTS}"),
        sweep("qwen-one", 90, f"{_QWEN} --sections {_PARALLEL}"),
        _over(ranks, _llada("llada-tp", f"--tp {ranks}", ("batch=1 graphs=true", "batch=16 graphs=true", "batch=16"))),
        _over(ranks, _llada("llada-ep", f"--ep {ranks}", ("batch=1", "batch=16"))),
        _llada("llada-one", "", ("batch=1 graphs=true", "batch=16 graphs=true", "batch=1", "batch=16")),
        _split(ranks, "qwen3-eplb", 100, f"{_EPLB} {dp} {eplb} --sections settle,rank-skew"),
        _split(ranks, "qwen3-ep", 80, f"{_EPLB} {dp} --sections rank-skew,decode-parallel"),
    )
    tp_ep = f"{tp} --enable-expert-parallel"
    third = (
        _over(ranks, _llada("llada-ep", f"--ep {ranks}", ("batch=1", "batch=16"))),
        _llada("llada-one-eager", "", ("batch=1", "batch=16")),
        _split(ranks, "qwen-dp-ep-forced", 90, f"{_QWEN} {dp} {_FORCED}"),
        _split(ranks, "qwen-tp-ep-forced", 90, f"{_QWEN} {tp_ep} {_FORCED}"),
        _split(ranks, "qwen3-ep-forced", 90, f"{_QWEN3} {dp} {_MOVED}"),
        _split(ranks, "qwen3-eplb-forced", 150, f"{_QWEN3} {dp} {eplb} {_MOVED}"),
        _split(ranks, "mixtral-dp-ep-forced", 120, f"{_MIXTRAL} {dp} {_FORCED}"),
    )
    redrawn = "--capture-sizes 1,8,64,128,256 --sections redrawn"
    fourth = (
        _split(ranks, "qwen-dp-ep-redrawn", 90, f"{_QWEN} {dp} {redrawn}"),
        _split(ranks, "qwen3-ep-forced", 90, f"{_QWEN3} {dp} {_FORCED}"),
        _split(ranks, "qwen-dp-ep-counted", 90, f"{_QWEN} {dp} {redrawn} --force-routing"),
        _over(ranks, _llada("llada-tp-ep", f"--tp {ranks} --ep {ranks}", ("batch=1", "batch=16"))),
        _split(ranks, "mixtral-tp-ep-forced", 120, f"{_MIXTRAL} {tp_ep} {_FORCED}"),
        _over(ranks, _collectives()),
    )
    kernels = (
        _split(ranks, "qwen-dp-ep-kernels", 90, f"{_QWEN} {dp} --sections kernels"),
        _split(ranks, "mixtral-dp-ep-kernels", 90, f"{_MIXTRAL} {dp} --sections kernels"),
    )
    named = {"first": first, "second": second, "third": third, "fourth": fourth, "kernels": kernels}
    if ranks > 2:
        pairs = f"--tensor-parallel-size 2 --data-parallel-size {ranks // 2} --enable-expert-parallel"
        named["hybrid"] = (
            _split(ranks, "mixtral-pairs-ep", 130, f"{_MIXTRAL} {pairs} --sections {_PARALLEL}"),
            _split(ranks, "qwen-pairs-ep", 130, f"{_QWEN} {pairs} --sections {_PARALLEL}"),
        )
    return {f"{ranks}gpus-{name}": jobs for name, jobs in named.items()}


def _split(ranks: int, name: str, seconds: float, arguments: str) -> Job:
    """A sweep over all ranks; without vLLM's own all-reduce when it does not start with it."""
    spare = sweep(f"{name}-nccl", seconds, f"{arguments} --disable-custom-all-reduce")
    return replace(sweep(name, seconds, arguments), ranks=ranks, head_start_s=15, fallback=replace(spare, ranks=ranks))


def _over(ranks: int, job: Job) -> Job:
    return replace(job, ranks=ranks)


def _collectives() -> Job:
    module = "hw_validation.micro_collectives"
    return Job(name="collectives", module=module, arguments="--out {out} --graphs", seconds=75, head_start_s=10)


def _llada(name: str, sizes: str, runs: tuple[str, ...]) -> Job:
    job = llada(name, 45, "llada-moe-7b-a1b", runs)
    return replace(job, arguments=f"{job.arguments} {sizes}".strip())


CAMPAIGNS = {name: jobs for ranks in (2, 4, 8) for name, jobs in make_campaigns(ranks).items()}
