from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hw_validation.experiment.cost import CostRates, server_cost, start_seconds
from hw_validation.experiment.measurement import Measurement, read_measurement, routing_strategy
from hw_validation.experiment.planning import make_plan
from hw_validation.experiment.runs import PlannedRun, SkippedRun, group_by_server, list_runs
from hw_validation.experiment.warm_up import warm_up_batches
from hw_validation.records import RecordLog, make_record
from moesim.errors import InputError
from moesim.experiments import Experiment, list_experiments, load_experiment
from moesim.scenarios import Request, make_scenario
from tests.hw_validation.fakes import SETUP

PHASES = [name for name in list_experiments() if name.startswith("phase")]
BASE = {"model": "olmoe-1b-7b", "hardware": "h200", "gpus": 1, "num_prompts": 16, "output_len": 16, "input_len": 32}


def experiment(measurement: dict[str, Any] | None = None, **words: Any) -> Experiment:
    vary = words.pop("vary", {})
    return Experiment(name="x", description="", base=BASE | words, vary=vary, measurement=measurement or {})


def runs_of(item: Experiment) -> list[PlannedRun]:
    listed = list(list_runs(item))
    assert all(isinstance(run, PlannedRun) for run in listed), listed
    return [run for run in listed if isinstance(run, PlannedRun)]


def test_seven_phases_say_what_they_feed() -> None:
    assert {name[:6] for name in PHASES} == {f"phase{number}" for number in range(1, 8)}
    assert all(load_experiment(name).feeds for name in PHASES)


@pytest.mark.parametrize("name", PHASES)
def test_phase_can_be_simulated_and_measured(name: str, tmp_path: Path) -> None:
    loaded = load_experiment(name)
    for request in loaded.requests():
        make_scenario(request)
    plan = make_plan(loaded, tmp_path)
    assert plan.skipped == ()
    keys = [key for server in plan.servers for key in server.keys]
    assert len(set(keys)) == len(keys)
    assert bool(keys) == (read_measurement(loaded).engine != "none")
    for server in plan.servers:
        for command in server.commands:
            assert shlex.split(command)


def test_queue_depths_reach_from_4_to_256() -> None:
    depths = {request.max_num_seqs for request in load_experiment("phase4_queue_depth").requests()}
    assert {4, 8, 16, 32, 64, 128, 256} <= depths


def test_keys_do_not_depend_on_the_order_of_the_file() -> None:
    forward = runs_of(experiment(vary={"concurrency": [1, 2], "enforce_eager": [False, True]}))
    backward = runs_of(experiment(vary={"enforce_eager": [True, False], "concurrency": [2, 1]}))
    assert sorted(run.key for run in forward) == sorted(run.key for run in backward)


@pytest.mark.parametrize(
    "change",
    [
        {"concurrency": 3},
        {"input_len": 33},
        {"max_num_seqs": 9},
        {"seed": 1},
        {"hardware": "mi300x"},
        {"tp": 2, "gpus": 2},
    ],
)
def test_key_changes_with_what_is_measured(change: dict[str, Any]) -> None:
    (before,), (after,) = runs_of(experiment()), runs_of(experiment(**change))
    assert before.key != after.key


def test_constants_of_the_simulator_do_not_change_the_key() -> None:
    (before,), (after,) = runs_of(experiment()), runs_of(experiment(parameters="prior-nvidia"))
    assert before.key == after.key


def test_runs_of_one_server_are_together_and_repeats_have_their_own_prompts() -> None:
    runs = runs_of(experiment({"repeats": 2}, vary={"concurrency": [1, 2], "enforce_eager": [False, True]}))
    groups = group_by_server(runs)
    assert [len(members) for _, members in groups] == [4, 4]
    assert {run.seed for run in runs} == {0, 1}


@pytest.mark.parametrize(
    ("words", "measurement", "reason"),
    [
        ({"cached_prefix_len": 16}, {}, "cached_prefix_len"),
        ({"routing": "zipf:1.2"}, {}, "measurement.routing_strategy"),
        ({"routing": "zipf:1.3"}, {"routing_strategy": "from_routing"}, "cannot be forced in vLLM"),
        ({"frontend": "offline", "concurrency": 4}, {}, "an offline batch holds its 16 prompts at once"),
        ({"frontend": "offline", "concurrency": 16, "gpus": 2, "dp": 2}, {}, "offline runs have one engine"),
        ({}, {"return_routed_experts": True}, "set frontend: offline"),
        ({"gpus": 4, "tp": 2, "dp": 2, "ep": 2}, {}, "vLLM's tp x dp = 4"),
        ({"model": "mixtral-8x7b", "hardware": "h100"}, {}, "mixtral-8x7b"),
        ({"quantization": "int4"}, {}, "quantization int4"),
        ({"gpus": 3, "tp": 3}, {}, "tensor_parallel_size: 3"),
    ],
)
def test_what_cannot_be_measured_is_said_not_dropped(
    words: dict[str, Any], measurement: dict[str, Any], reason: str
) -> None:
    (skipped,) = list_runs(experiment(measurement, **words))
    assert isinstance(skipped, SkippedRun)
    assert reason in skipped.reason


def test_forced_routing_follows_the_run() -> None:
    forced = Measurement(routing_strategy="from_routing")
    assert [routing_strategy(forced, name) for name in ("uniform", "zipf:0.8")] == ["uniform_random", "zipf_0.8"]
    assert routing_strategy(Measurement(), "zipf:0.8") == ""


@pytest.mark.parametrize(
    ("measurement", "complaint"),
    [
        ({"repeat": 2}, "unknown field 'repeat'"),
        ({"repeats": 0}, "repeats is 0"),
        ({"num_layers": 2}, "needs load_format: dummy"),
        ({"routing_strategy": "zipf"}, "'zipf' is unknown"),
        ({"load_format": "dumy"}, "load_format"),
    ],
)
def test_wrong_measurement_is_one_line(measurement: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        list(list_runs(experiment(measurement)))
    assert "\n" not in str(caught.value)


def test_cost_grows_with_the_load_and_counts_all_gpus() -> None:
    rates = CostRates()

    def minutes(**words: Any) -> float:
        runs = runs_of(experiment(**words))
        return server_cost(runs[0].server, runs, rates).gpu_minutes

    assert minutes(num_prompts=64) > minutes(num_prompts=16)
    assert minutes(gpus=2, dp=2) > 1.9 * minutes()
    assert minutes(vary={"concurrency": [4, 4]}) > minutes(concurrency=4)


def test_weights_are_read_in_proportion_to_their_size_and_random_ones_not() -> None:
    rates = CostRates(start_s=100, load_bytes_per_s=1e9)
    (real,), (dummy,) = runs_of(experiment()), runs_of(experiment({"load_format": "dummy"}))
    assert start_seconds(dummy.server, rates) == 100
    assert start_seconds(real.server, rates) == pytest.approx(100 + 2 * 6.92, rel=0.01)


def test_fewer_layers_fit_and_cost_less() -> None:
    words = {"model": "dbrx", "load_format": "dummy"}
    (whole,) = list_runs(experiment({"load_format": "dummy"}, model="dbrx"))
    assert isinstance(whole, SkippedRun)
    assert "does not fit" in whole.reason
    costs: list[float] = []
    for layers in (4, 8):
        (run,) = runs_of(experiment({"load_format": words["load_format"], "num_layers": layers}, model=words["model"]))
        assert run.server.num_layers == layers
        costs.append(server_cost(run.server, [run], CostRates(start_s=0)).runs[0].run_s)
    assert costs[0] < costs[1] < 2.2 * costs[0]


@pytest.mark.parametrize("layers", [0, 3, 62])
def test_layers_that_the_model_does_not_have_are_refused(layers: int) -> None:
    (skipped,) = list_runs(experiment({"load_format": "dummy", "num_layers": layers}, model="deepseek-v3"))
    assert isinstance(skipped, SkippedRun)
    assert "deepseek-v3 has 4 to 61" in skipped.reason


def test_warm_up_reaches_every_batch_size_in_doublings() -> None:
    def batches(**words: Any) -> list[int]:
        return warm_up_batches(make_scenario(Request(**(BASE | words))))

    assert batches(concurrency=12, num_prompts=100) == [1, 2, 4, 8, 12]
    assert batches(concurrency=64, num_prompts=5) == [1, 2, 4, 5]
    assert batches(concurrency=64, num_prompts=100, max_num_seqs=3) == [1, 2, 3]


def test_plan_leaves_out_what_the_log_holds(tmp_path: Path) -> None:
    item = experiment(vary={"concurrency": [1, 2, 4]})
    first = runs_of(item)[0]
    RecordLog(tmp_path / "log.jsonl").append(make_record("closed_loop", first.key, SETUP, {}, values={}))
    plan = make_plan(item, tmp_path, tmp_path / "log.jsonl", CostRates())
    assert (plan.done, plan.num_runs) == (1, 2)
    assert plan.gpu_minutes is not None
    assert json.loads(msgspec.json.encode(plan.to_dict()))["num_runs"] == 2


def test_plan_of_one_accelerator(tmp_path: Path) -> None:
    item = experiment(vary={"hardware": ["h200", "mi300x"]})
    plan = make_plan(item, tmp_path, hardware="mi300x")
    assert [server.hardware for server in plan.servers] == ["mi300x"]
    assert "VLLM_ROCM_USE_AITER=1" in plan.servers[0].commands[0]


def test_llada_runs_are_commands_of_the_own_engine(tmp_path: Path) -> None:
    item = experiment(
        {"load_format": "dummy"},
        model="llada-moe-7b",
        output_len=1,
        generation_len=64,
        block_len=32,
        steps=32,
        concurrency=2,
        vary={"expert_execution": ["loop", "grouped"]},
    )
    plan = make_plan(item, tmp_path)
    loop, grouped = (command for server in plan.servers for command in server.commands)
    assert "--batch 2 --prompt-len 32 --generation-len 64 --steps 32 --block-len 32" in loop
    assert "--graphs" not in loop
    assert "--graphs" in grouped
    assert "--weights" not in grouped


def test_llada_commands_are_understood_by_the_engine(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from hw_validation.llada.cli import build_parser

    for server in make_plan(load_experiment("phase1_diffusion"), tmp_path).servers:
        for command in server.commands:
            words = shlex.split(command)
            build_parser().parse_args(words[words.index("hw_validation.llada") + 1 :])
