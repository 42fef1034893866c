"""Constants behind simulated runs are found again, and replayed slopes are those of the simulation."""

import msgspec
import numpy as np
import pytest

from calibration import run_fit
from calibration.errors_left_out import free_of
from calibration.run_fit import Column, fit_runs, linearise, observe, refit_without, scenario_of, value_of
from calibration.runs import MeasuredRun
from moesim.errors import InputError
from moesim.specs.parameters import scaled
from tests.calibration.synthetic import TRUTH, measure, planned_runs, prior, truth

COLUMNS = [Column(name) for name in TRUTH]
WIDE = dict.fromkeys(TRUTH, 0.7)


def test_exact_runs_give_the_constants_behind_them():
    """The server's constant less well: queues in front of the engine make its slope approximate, and medians of few
    requests jump with the order of events (one row in ten may be off by that).
    """
    runs = measure(planned_runs(concurrency=(1, 2, 4)), truth(), np.random.default_rng(0), noise=0.0)
    fitted = fit_runs(prior(), observe(runs), COLUMNS, WIDE, jobs=1)
    for name in ("gemm_slowdown", "experts_slowdown", "host_launch_s"):
        assert fitted.parameters[name] == pytest.approx(TRUTH[name], rel=0.01)
    assert fitted.parameters["server_request_s"] == pytest.approx(TRUTH["server_request_s"], rel=0.35)
    late = np.array([metric == "ttft_p50_ms" for _, metric in fitted.linear.observations.index])
    assert np.quantile(np.abs(fitted.result.log_errors[~late]), 0.9) < 0.02
    assert np.median(np.abs(fitted.result.log_errors[late])) < 0.05


def test_a_fit_that_begins_on_few_of_the_runs_ends_where_all_of_them_point(monkeypatch):
    monkeypatch.setattr(run_fit, "_ROUGH_RUNS", 4)
    runs = measure(planned_runs(concurrency=(1, 2, 4)), truth(), np.random.default_rng(0), noise=0.0)
    fitted = fit_runs(prior(), observe(runs), COLUMNS, WIDE, jobs=1)
    assert len({run for run, _ in fitted.linear.observations.index}) == len(runs)
    for name in ("gemm_slowdown", "experts_slowdown", "host_launch_s"):
        assert fitted.parameters[name] == pytest.approx(TRUTH[name], rel=0.01)


def test_rows_that_are_left_out_do_not_pull():
    """Two of twelve runs are wrong by half: without them the others give the constants behind them."""
    runs = measure(planned_runs(concurrency=(1, 2, 4)), truth(), np.random.default_rng(0), noise=0.0)
    for index in (0, 5):
        wrong = {name: 1.5 * value for name, value in runs[index].measured.items()}
        runs[index] = msgspec.structs.replace(runs[index], measured=wrong)
    full = fit_runs(prior(), observe(runs), COLUMNS, WIDE, jobs=1)
    held = np.array([run in (0, 5) for run, _ in full.linear.observations.index])
    without = refit_without(full, free_of(full), held, jobs=1, max_rounds=3)
    for name in ("gemm_slowdown", "experts_slowdown", "host_launch_s"):
        assert without[name] == pytest.approx(TRUTH[name], rel=0.015)
        assert abs(np.log(without[name] / TRUTH[name])) < abs(np.log(full.parameters[name] / TRUTH[name]))


def test_noisy_runs_give_them_within_their_errors():
    runs = measure(planned_runs(concurrency=(1, 3, 8, 24)), truth(), np.random.default_rng(1))
    fitted = fit_runs(prior(), observe(runs), COLUMNS, WIDE, jobs=1)
    for item in fitted.result.estimates:
        assert abs(np.log(item.value / TRUTH[item.name])) < 3 * item.log_sd, item.name
        assert not item.prior_only
    assert fitted.result.scale < 1.5


def test_a_machines_constants_are_told_from_the_accelerators():
    """Two hosts, one twice as slow at launching: each gets its own constant, the products share theirs."""
    runs = []
    for site, launch_s in (("quick", 5e-5), ("slow", 1e-4)):
        there = planned_runs(models=("olmoe-1b-7b",), site=site)
        runs += measure(there, truth({"gemm_slowdown": 1.2, "host_launch_s": launch_s}), np.random.default_rng(2), 0.0)
    columns = [Column("gemm_slowdown"), Column("host_launch_s", "quick"), Column("host_launch_s", "slow")]
    fitted = fit_runs(prior(), observe(runs), columns, {}, jobs=1)
    assert value_of(fitted.parameters, columns[1]) == pytest.approx(5e-5, rel=0.02)
    assert value_of(fitted.parameters, columns[2]) == pytest.approx(1e-4, rel=0.02)
    assert fitted.parameters["gemm_slowdown"] == pytest.approx(1.2, rel=0.03)
    assert fitted.parameters["host_launch_s"] == prior()["host_launch_s"]
    assert scenario_of(runs[-1], fitted.parameters).parameters["host_launch_s"] == pytest.approx(1e-4, rel=0.02)


def test_replayed_slopes_are_those_of_the_simulation():
    """Central differences of whole simulations, +-0.2 %: nine in ten slopes agree within 0.02.

    The rest are runs whose order of events flips within the step, where a simulation has no slope.
    """
    runs = planned_runs(metrics=("itl_mean_ms", "tpot_mean_ms", "output_tok_per_s"))
    observations = observe(runs)
    names = ("gemm_slowdown", "experts_slowdown", "kernel_s", "host_step_s", "host_launch_s")
    columns = [Column(name) for name in names]
    _, slopes = linearise(observations, prior(), columns, 1, None)
    step = 0.002
    for index, name in enumerate(names):
        sides = []
        for sign in (1, -1):
            moved = scaled(prior(), name, float(np.exp(sign * step)))
            sides.append(linearise(observations, moved, [], 1, None)[0])
        apart = np.abs((sides[0] - sides[1]) / (2 * step) - slopes[:, index])
        assert np.quantile(apart, 0.9) < 0.02, name


def test_slopes_of_a_host_bound_step_add_up_to_one():
    """Where the host decides, its constants together are the whole step: twice all of them is twice the time."""
    runs = planned_runs(models=("olmoe-1b-7b",), concurrency=(4,), eager=(True,), metrics=("itl_mean_ms",))
    hosts = ("host_step_s", "host_launch_s", "host_sequence_s", "host_uncaptured_s", "host_layer_s", "host_piece_s")
    hosts = [*hosts, "graph_replay_s"]
    _, slopes = linearise(observe(runs), prior(), [Column(name) for name in hosts], 1, None)
    assert slopes.sum() == pytest.approx(1.0, abs=0.02)


def test_flagged_values_and_runs_that_cannot_run_are_left_out():
    good, flagged, impossible = planned_runs(models=("olmoe-1b-7b",), concurrency=(1, 2, 4), eager=(False,))
    flagged = msgspec.structs.replace(flagged, flags=("ttft_stall",))
    huge = msgspec.structs.replace(impossible.request, model="deepseek-v3")
    impossible = msgspec.structs.replace(impossible, request=huge)
    observations = observe([good, flagged, impossible])
    assert [metric for run, metric in observations.index if run == 1] == ["itl_p50_ms"]
    fitted = fit_runs(prior(), observations, [Column("gemm_slowdown")], {}, jobs=1)
    assert {run for run, _ in fitted.linear.observations.index} == {0, 1}
    with pytest.raises(InputError, match="none of the runs"):
        fit_runs(prior(), observe([impossible]), [Column("gemm_slowdown")], {}, jobs=1)


def test_single_steps_are_priced_like_the_engines_steps():
    """A decode step given alone lasts what it lasts inside a run with one client."""
    run = planned_runs(models=("olmoe-1b-7b",), concurrency=(1,), eager=(False,), metrics=("itl_p50_ms",))[0]
    served = np.exp(linearise(observe([run]), prior(), [], 1, None)[0][0])
    request = run.request
    step = MeasuredRun(
        id="step",
        engine="vllm",
        request=request,
        measured={"step_gpu_ms": 1.0},
        step={"decodes": 1, "context_tokens": request.input_len + request.output_len / 2},
    )
    step = msgspec.convert(msgspec.to_builtins(step), MeasuredRun)
    alone = np.exp(linearise(observe([step]), prior(), [], 1, None)[0][0])
    assert alone == pytest.approx(served, rel=0.02)


def test_an_interrupted_fit_simulates_only_what_it_had_not(tmp_path, monkeypatch):
    """Stopped in its third round, taken up again: the first two come from the folder, and the answer is the same."""
    runs = measure(planned_runs(models=("olmoe-1b-7b",)), truth(), np.random.default_rng(0), noise=0.0)
    simulate, rounds = run_fit._simulated, []

    def counted(observations, parameters, *rest):
        rounds.append(parameters)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        return simulate(observations, parameters, *rest)

    monkeypatch.setattr(run_fit, "_simulated", counted)
    with pytest.raises(KeyboardInterrupt):
        fit_runs(prior(), observe(runs), COLUMNS, WIDE, jobs=1, state=tmp_path)
    next(iter(tmp_path.iterdir())).write_bytes(b"PK\x03\x04 torn")
    resumed = fit_runs(prior(), observe(runs), COLUMNS, WIDE, jobs=1, state=tmp_path)
    so_far = len(rounds)
    whole = fit_runs(prior(), observe(runs), COLUMNS, WIDE, jobs=1)
    needed = len(rounds) - so_far
    assert resumed.parameters == whole.parameters
    assert so_far == 3 + needed - 1, "of two finished rounds one was torn"
    other = msgspec.structs.replace(runs[0], request=msgspec.structs.replace(runs[0].request, num_prompts=3))
    fit_runs(prior(), observe([other, *runs[1:]]), COLUMNS, WIDE, jobs=1, state=tmp_path, max_rounds=1)
    assert len(rounds) == so_far + needed + 1, "another question"
