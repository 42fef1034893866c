"""The command `python -m hw_validation.llada`: reads arguments, runs, prints one line a run, writes the records."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, get_args, get_type_hints

import torch
import torch.distributed as dist

from hw_validation.llada.config import PRESETS, Architecture, InputError, from_checkpoint, preset, with_layers
from hw_validation.llada.distributed import join_ranks
from hw_validation.llada.engine import Effort, Engine
from hw_validation.llada.floor import Ceilings
from hw_validation.llada.record import Run, check_target, describe, write
from hw_validation.llada.settings import CacheKind, Execution, KernelChoice, Products, Remasking, RunSettings, check

_DESCRIPTION = """\
Measure masked-diffusion decoding of LLaDA-8B or LLaDA-MoE-7B.

The model fills a text of --generation-len masks, block by block, in --steps forwards. Without --weights it has
random weights of the real sizes: times are real, texts are not (records say which). Each run prints one line;
--json keeps everything: settings, versions, every repeat's times, the floor that the weights' bytes set.
"""

_EPILOG = """\
examples:
  the reference setting, experts grouped and replayed as a CUDA graph
    python -m hw_validation.llada --model llada-moe-7b-a1b --graphs --json moe.json
  the same, one call per expert, as the published code runs
    python -m hw_validation.llada --model llada-moe-7b-a1b --expert-execution loop --repeats 1
  many runs on one copy of the weights: all combinations of the varied settings
    python -m hw_validation.llada --model llada-8b --graphs --vary batch=1,4,16 --vary cache=none,prefix,dual
  some runs on one copy of the weights, each with settings of its own
    python -m hw_validation.llada --run graphs=true --run "expert_execution=loop" --run "cache=dual graphs=true"
  four GPUs, whole experts on each, one prompt shared by all
    torchrun --nproc-per-node 4 -m hw_validation.llada --model llada-moe-7b-a1b --tp 4 --ep 4
  a second on a laptop
    python -m hw_validation.llada --model tiny-moe --generation-len 16 --block-len 8 --steps 8 --dtype float32
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"llada: {message} (--help explains)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """All arguments of the command."""
    parser = _Parser(
        prog="python -m hw_validation.llada",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_model(parser)
    _add_decoding(parser)
    _add_execution(parser)
    _add_measuring(parser)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="llada-moe-7b-a1b", help=f"{', '.join(PRESETS)} (default %(default)s)")
    group.add_argument("--weights", type=Path, metavar="DIR", help="snapshot with config.json and safetensors shards")
    group.add_argument("--layers", type=int, metavar="N", help="only the first N layers (recorded as reduced)")
    group.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default %(default)s")
    group.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: a GPU if there is one"
    )
    group.add_argument("--seed", type=int, default=0, help="random weights, prompts and sampling (default 0)")


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding")
    base = RunSettings()
    group.add_argument("--prompt-len", type=int, default=base.prompt_len, help="prompt tokens (default %(default)s)")
    group.add_argument("--generation-len", type=int, default=base.generation_len, help="default %(default)s")
    group.add_argument(
        "--steps", type=int, default=base.steps, help="denoising steps of all blocks (default %(default)s)"
    )
    group.add_argument("--block-len", type=int, default=base.block_len, help="tokens of a block (default %(default)s)")
    group.add_argument("--batch", type=int, default=base.batch, help="prompts a replica decodes together (default 1)")
    group.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token (default)")
    group.add_argument("--cfg-scale", type=float, default=0.0, help="guidance; above 0 doubles the batch (default 0)")
    group.add_argument("--remasking", choices=get_args(Remasking), default=base.remasking, help="which masks go first")
    group.add_argument("--threshold", type=float, help="unmask all tokens this probable; --steps is then ignored")
    group.add_argument("--cache", choices=get_args(CacheKind), default=base.cache, help="positions not recomputed")
    group.add_argument(
        "--cache-refresh", type=int, default=0, metavar="N", help="recompute all every N steps (0: once a block)"
    )


def _add_execution(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("execution")
    group.add_argument("--expert-execution", choices=get_args(Execution), default="grouped", help="default %(default)s")
    group.add_argument(
        "--kernels", choices=get_args(KernelChoice), default="auto", help="auto: triton on a GPU, if there"
    )
    group.add_argument(
        "--products", choices=get_args(Products), default="tuned", help="dense ones; blas: as PyTorch does them"
    )
    group.add_argument("--graphs", action="store_true", help="capture each forward as a CUDA graph and replay it")
    group.add_argument("--tp", type=int, default=1, help="ranks that share every head and width (under torchrun)")
    group.add_argument("--ep", type=int, default=1, help="1, or all ranks: each owns whole experts, all-to-all between")


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("measuring")
    ceilings = Ceilings()
    group.add_argument("--repeats", type=int, default=3, help="timed generations, each with new prompts (default 3)")
    group.add_argument(
        "--warm-ups", type=int, default=2, help="untimed passes over all forward shapes first (default 2)"
    )
    group.add_argument(
        "--no-tune", action="store_true", help="products and tiles as they are without timing them on the device"
    )
    group.add_argument(
        "--profile", action="store_true", help="list the kernels of the last run's steps (torch.profiler)"
    )
    group.add_argument("--expert-loads", action="store_true", help="count every expert's tokens (adds small kernels)")
    group.add_argument(
        "--vary", action="append", default=[], metavar="NAME=A,B", help="a setting's values; repeat for combinations"
    )
    group.add_argument(
        "--bytes-per-s", type=float, default=ceilings.bytes_per_s, help="memory ceiling (default %(default)g)"
    )
    group.add_argument(
        "--flops-per-s", type=float, default=ceilings.flops_per_s, help="matrix ceiling (default %(default)g)"
    )
    group.add_argument(
        "--run", action="append", default=[], metavar="'NAME=V NAME=V'", help="one run's settings; repeat for more runs"
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="records of all runs, rewritten after each")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when all runs were measured, 2 for input that cannot work."""
    parsed = build_parser().parse_args(arguments)
    try:
        _measure(parsed)
    except InputError as error:
        print(f"llada: {error}", file=sys.stderr)
        return 2
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _measure(parsed: argparse.Namespace) -> None:
    architecture, full_layers = _architecture(parsed)
    wanted = chosen(_settings(parsed), parsed.run)
    runs = [check(settings, architecture) for base in wanted for settings in varied(base, parsed.vary)]
    if parsed.json:
        check_target(parsed.json)
    if parsed.repeats < 1:
        raise InputError(f"repeats: {parsed.repeats} is out of range, must be at least 1")
    device = _device(parsed.device)
    if device.type == "cpu" and any(settings.graphs for settings in runs):
        raise InputError("graphs: CUDA graphs need a GPU; leave out --graphs")
    if device.type == "cpu" and parsed.profile:
        raise InputError("profile: there are no kernels to list without a GPU; leave out --profile")
    parallel = join_ranks(parsed.tp, parsed.ep, device)
    if parallel.ep > 1 and any(settings.graphs for settings in runs):
        raise InputError("graphs: the all-to-all split sizes come from the host; leave out --graphs or use --ep 1")
    engine = Engine(
        architecture,
        device,
        getattr(torch, parsed.dtype),
        checkpoint=parsed.weights,
        full_layers=full_layers,
        seed=parsed.seed,
        parallel=parallel,
        ceilings=Ceilings(parsed.bytes_per_s, parsed.flops_per_s),
    )
    effort = Effort(repeats=parsed.repeats, warm_ups=max(parsed.warm_ups, 0), tune=not parsed.no_tune)
    done: list[Run] = []
    for place, settings in enumerate(runs, start=1):
        done.append(engine.measure(settings, replace(effort, profile=parsed.profile and place == len(runs))))
        if parallel.rank == 0:
            print(describe(done[-1]), flush=True)
            if parsed.json:
                write(parsed.json, done)


def _architecture(parsed: argparse.Namespace) -> tuple[Architecture, int]:
    """The model to build and its published number of layers."""
    full = from_checkpoint(parsed.weights) if parsed.weights else preset(parsed.model)
    return with_layers(full, parsed.layers), full.num_layers


def _settings(parsed: argparse.Namespace) -> RunSettings:
    return RunSettings(**{name: getattr(parsed, name) for name in RunSettings.__dataclass_fields__})


def varied(base: RunSettings, clauses: Sequence[str]) -> list[RunSettings]:
    """All combinations of the settings in `clauses` ("batch=1,2"), the first clause changing slowest."""
    axes = [_axis(clause) for clause in clauses]
    return [replace(base, **dict(point)) for point in itertools.product(*axes)]


def chosen(base: RunSettings, runs: Sequence[str]) -> list[RunSettings]:
    """`base` changed by each text of `runs` ("batch=4 graphs=true"); `base` alone when there are none."""
    changes = [dict(_axis(clause)[0] for clause in text.split()) for text in runs]
    return [replace(base, **change) for change in changes] or [base]


def _axis(clause: str) -> list[tuple[str, object]]:
    """The (setting, value) pairs of one clause."""
    name, equals, values = clause.partition("=")
    field = name.strip().replace("-", "_")
    if not equals or field not in RunSettings.__dataclass_fields__:
        known = ", ".join(RunSettings.__dataclass_fields__)
        raise InputError(f"vary: {clause!r} is not NAME=A,B with one of {known}")
    return [(field, _parse(field, value.strip())) for value in values.split(",")]


def _parse(field: str, text: str) -> object:
    """One value of a setting, of the setting's type."""
    hint = get_type_hints(RunSettings)[field]
    if hint is bool:
        if text not in ("true", "false"):
            raise InputError(f"vary: {field} is true or false, not {text!r}")
        return text == "true"
    if hint is int or hint is float or field == "threshold":
        try:
            return int(text) if hint is int else float(text)
        except ValueError:
            raise InputError(f"vary: {field} is a number, not {text!r}") from None
    if text not in get_args(hint):
        raise InputError(f"vary: {field} is one of {', '.join(get_args(hint))}, not {text!r}")
    return text


def _device(choice: str) -> torch.device:
    """The device of this process; each local rank has a GPU of its own."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise InputError("device: no CUDA or ROCm GPU is visible; use --device cpu")
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    import os

    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
