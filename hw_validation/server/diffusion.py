"""Masked-diffusion runs: the project's LLaDA engine as a command, its records taken into the log."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from hw_validation.experiment.paths import model_folder
from hw_validation.experiment.runs import PlannedRun
from hw_validation.records import Environment, Record, RecordLog, Setup, make_record
from hw_validation.server.options import RunOptions
from hw_validation.server.process import supervised, tail
from hw_validation.server.variables import server_variables
from moesim.scenarios import make_scenario

ENGINE = "moesim-llada"
CODE = "moesim"
"""The engine's program, in the simulator's words (`moesim.specs.scenario.DenoisingCode`)."""


def measure_diffusion(runs: list[PlannedRun], log: RecordLog, options: RunOptions, machine: Environment) -> list[str]:
    """Measure each run in a process of its own; the reasons of those that failed."""
    failed: list[str] = []
    for run in runs:
        result, output = options.work_dir / "llada.json", options.work_dir / "llada.log"
        options.work_dir.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        command = diffusion_command(run, options.models_dir, result)
        with supervised(command, server_variables(run.server), output) as process:
            code = process.wait()
        if code or not result.is_file():
            failed.append(f"{run.key}: the LLaDA engine ended with exit code {code}: {tail(output)}")
            print(failed[-1], file=sys.stderr, flush=True)
            continue
        log.append(_to_record(run, json.loads(result.read_text(encoding="utf-8"))["records"][0], machine))
        print(f"{run.key}: recorded", file=sys.stderr, flush=True)
    return failed


def diffusion_command(run: PlannedRun, models_dir: Path, result: Path) -> list[str]:
    """The engine's command; graphs unless eager, whole experts on ranks, or a loop over experts."""
    size, settings = run.server.deployment, make_scenario(run.request).diffusion
    assert settings is not None
    gpus = run.server.gpus
    launcher = ["torchrun", "--nproc-per-node", str(gpus)] if gpus > 1 else [sys.executable]
    command = [*launcher, "-m", "hw_validation.llada", "--model", run.server.model.name]
    command += ["--batch", str(batch_size(run)), "--prompt-len", str(run.request.input_len)]
    for name in ("generation_len", "steps", "block_len", "cache", "expert_execution"):
        command += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    command += ["--cfg-scale", f"{settings.cfg_scale:g}", "--seed", str(run.seed)]
    command += ["--tp", str(size.tensor_parallel_size), "--ep", str(size.expert_parallel_size)]
    looped = settings.expert_execution == "loop" and run.server.model.moe is not None
    if not (size.enforce_eager or looped or size.expert_parallel_size > 1):
        command.append("--graphs")
    if run.server.measurement.load_format != "dummy":
        command += ["--weights", str(model_folder(run.server, models_dir))]
    if run.server.measurement.num_layers:
        command += ["--layers", str(run.server.measurement.num_layers)]
    if run.server.measurement.return_routed_experts and run.server.model.moe is not None:
        command.append("--expert-loads")
    return [*command, "--json", str(result)]


def batch_size(run: PlannedRun) -> int:
    """Prompts that a replica decodes together: the clients of the closed loop."""
    return run.request.concurrency or 1


def _to_record(run: PlannedRun, found: dict[str, Any], machine: Environment) -> Record:
    """The engine's own record in the log's form; kept whole in `tables`. A batch is a closed loop of its prompts."""
    measured = found["measured"]
    values = {
        "output_tokens_per_s": measured["output_tok_per_s"],
        "e2e_median_ms": measured["prompt_mean_ms"],
        "forward_median_ms": measured["forward_step_ms"],
        "sampling_median_ms": measured["sampling_step_ms"],
        "forwards": float(measured["forwards"]),
        "peak_memory_bytes": float(found["peak_memory_bytes"]),
    }
    flags = {"settings": found["settings"], "parallel": found["parallel"], "operators": found["operators"]}
    setup = Setup(
        model=run.server.model.name,
        num_layers=found["architecture"]["num_layers"],
        weights="real" if run.server.measurement.load_format != "dummy" else "dummy",
        engine=ENGINE,
        engine_version="1",
        environment=_environment(machine, found["environment"]),
        flags=flags | {"hardware": run.server.hardware, "gpus": run.server.gpus},
    )
    point = msgspec.to_builtins(run.request) | {"repeat": run.repeat, "prompt_seed": run.seed}
    point["engine_version"] = CODE
    return make_record("closed_loop", run.key, setup, point, values=values, tables={"llada": [found]})


def _environment(machine: Environment, found: dict[str, Any]) -> Environment:
    """The machine, with the device that the engine itself used."""
    return msgspec.structs.replace(machine, gpu=str(found["device"]), torch=str(found["torch"]))
