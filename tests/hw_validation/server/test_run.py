from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.hw_validation.server.site import Site, alive, wait_for


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site whose four runs are measured; tests only read it."""
    site = Site(tmp_path_factory.mktemp("finished"))
    code, output = site.run()
    assert code == 0, output
    return site


def test_every_run_leaves_one_record_and_no_process(finished: Site) -> None:
    records = finished.records()
    assert len({record["key"] for record in records}) == len(records) == 4
    assert len(finished.calls("serve")) == 2
    assert not [pid for pid in finished.pids() if alive(pid)]
    first = records[0]
    assert first["setup"]["weights"] == "dummy"
    assert first["setup"]["engine_version"] == "0.99.fake"
    assert first["setup"]["environment"]["gpu"] == "NVIDIA H200"
    assert [record["setup"]["flags"]["enforce_eager"] for record in records] == [False, False, False, True]
    values = first["values"]
    assert values["ttft_median_ms"] == pytest.approx(50)
    assert values["tpot_median_ms"] == pytest.approx(10)
    assert values["e2e_median_ms"] == pytest.approx(50 + 7 * 10)
    assert values["output_tokens_per_s"] == pytest.approx(8 * 8 / 2.0)
    assert values["gpu_power_mean_w"] == pytest.approx(650.5)
    assert values["preemptions"] == 0
    assert first["tables"]["gpu_index"][:2] == [0, 1]
    assert first["tables"]["sent_s"] == list(range(8))
    assert first["setup"]["flags"]["routers_redrawn"] == 16


def test_each_batch_size_is_warmed_once_before_its_run(finished: Site) -> None:
    waves = [call for call in finished.calls("bench") if "--save-detailed" not in call]
    sizes = [int(call.split("--num-prompts ")[1].split()[0]) for call in waves]
    assert sizes == [1, 2, 4, 1, 2]


def test_prefix_cache_is_reset_before_every_run_or_off(finished: Site, site: Site) -> None:
    assert len(finished.calls("post /reset_prefix_cache")) == 4
    site.experiment["base"]["enable_prefix_caching"] = False
    site.experiment["runs"] = [{"concurrency": 1}]
    assert site.run()[0] == 0
    assert not site.calls("post /reset")
    assert ["--no-enable-prefix-caching" in call for call in site.calls("serve")] == [True]


def test_killed_run_goes_on_with_what_is_missing(site: Site) -> None:
    site.variables["FAKE_HOLD"] = "1"
    process = site.start()
    assert wait_for(lambda: bool(site.calls("held")))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert wait_for(lambda: not [pid for pid in site.pids() if alive(pid)]), "the server outlived its runner"
    kept = site.records()
    assert len(kept) == 1
    with site.log.open("a") as stream:
        stream.write('{"kind": "closed_loop", "key": "cut sh')
    del site.variables["FAKE_HOLD"]
    code, output = site.run()
    assert code == 0, output
    assert "3 runs recorded, 1 were there" in output
    assert site.records()[:1] == kept
    assert len(site.records()) == 4


def test_interrupted_run_stops_its_server_and_keeps_its_records(site: Site) -> None:
    site.variables["FAKE_HOLD"] = "1"
    process = site.start()
    assert wait_for(lambda: bool(site.calls("held")))
    process.send_signal(signal.SIGINT)
    site.release()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert wait_for(lambda: not [pid for pid in site.pids() if alive(pid)])
    assert len(site.records()) == 1


def test_two_runs_do_not_write_one_log(site: Site) -> None:
    site.variables["FAKE_HOLD"] = "0"
    process = site.start()
    assert wait_for(lambda: bool(site.calls("held")))
    code, output = site.run()
    process.kill()
    process.communicate()
    assert code == 2
    assert "another run measures into it" in output


def test_complete_log_starts_no_server(finished: Site) -> None:
    started = len(finished.calls("serve"))
    code, output = finished.run()
    assert code == 0
    assert "0 runs recorded, 4 were there" in output
    assert len(finished.calls("serve")) == started


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ({"parallel_config": {"tensor_parallel_size": 2}}, "tensor_parallel_size: planned 1, found 2"),
        ({"parallel_config": {"enable_expert_parallel": True}}, "enable_expert_parallel: planned False, found True"),
        ({"model_config": {"enforce_eager": True}}, "enforce_eager: planned False, found True"),
        ({"compilation_config": {"cudagraph_mode": 0}}, "cudagraph_mode: planned graphs, found NONE"),
        ({"load_config": {"load_format": "auto"}}, "load_format: planned dummy, found auto"),
        ({"scheduler_config": {"max_num_seqs": 7}}, "max_num_seqs: planned 1024, found 7"),
    ],
)
def test_server_that_is_not_the_planned_one_is_refused(site: Site, facts: dict[str, object], complaint: str) -> None:
    site.variables["FAKE_FACTS"] = json.dumps(facts)
    code, output = site.run()
    assert code == 2
    assert complaint in output
    assert "Traceback" not in output
    assert site.records() == []
    assert not [pid for pid in site.pids() if alive(pid)]


def test_server_that_cannot_be_probed_is_refused(site: Site) -> None:
    site.experiment["measurement"]["environment"] = {"VLLM_SERVER_DEV_MODE": "0"}
    code, output = site.run()
    assert code == 2
    assert "start it with VLLM_SERVER_DEV_MODE=1" in output
    assert site.records() == []


def test_failed_requests_are_not_recorded(site: Site) -> None:
    site.variables["FAKE_FAILED"] = "3"
    site.experiment["runs"] = [{"concurrency": 1}]
    code, output = site.run()
    assert code == 1
    assert "3 requests failed" in output
    assert site.records() == []


def test_answers_of_another_length_are_not_recorded(site: Site) -> None:
    site.variables["FAKE_SHORT"] = "2"
    site.experiment["runs"] = [{"concurrency": 1}]
    code, output = site.run()
    assert code == 1
    assert "answers have 6 to 6 tokens, 8 were asked for" in output
    assert site.records() == []


def test_real_weights_are_left_alone_and_must_be_there(site: Site) -> None:
    site.experiment["measurement"] = {}
    site.experiment["runs"] = [{"concurrency": 1}]
    code, output = site.run()
    assert code == 2
    assert "run `moesim-hw fetch allenai/OLMoE-1B-7B-0924`" in output
    snapshot = site.folder / "models" / "allenai--OLMoE-1B-7B-0924"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"x")
    assert site.run()[0] == 0
    assert not site.calls("post /collective_rpc")
    assert {record["setup"]["weights"] for record in site.records()} == {"real"}


def test_records_are_read_by_calibration(finished: Site) -> None:
    from calibration.readers.records import read

    found = read(finished.log)
    assert [item.kind for item in found] == ["serving"] * 4
    assert found[1].request["concurrency"] == 2
    assert found[0].hardware.accelerator == "h200"


def test_server_that_ends_is_told_with_its_log(site: Site) -> None:
    site.variables["FAKE_FACTS"] = "{broken"
    (site.folder / "bin" / "vllm").write_text("#!/bin/sh\necho CUDA out of memory >&2\nexit 3\n")
    code, output = site.run()
    assert code == 1
    assert "exit code 3" in output
    assert "CUDA out of memory" in output


def test_replicas_share_the_load_on_their_own_gpus(site: Site) -> None:
    site.experiment["base"] |= {"gpus": 2, "dp": 2, "tp": 1}
    site.experiment["runs"] = [{"concurrency": 4}]
    code, output = site.run()
    assert code == 0, output
    assert len(site.calls("serve")) == 2
    measured = [call for call in site.calls("bench") if "--save-detailed" in call]
    assert all("--max-concurrency 2" in call and "--num-prompts 4" in call for call in measured)
    assert len({call.split("--seed ")[1].split()[0] for call in measured}) == 2
    (record,) = site.records()
    assert record["values"]["num_requests"] == 8
    assert record["setup"]["flags"]["replicas"] == 2


def test_other_gpus_than_planned_are_refused(site: Site) -> None:
    site.experiment["base"]["hardware"] = "mi300x"
    code, output = site.run()
    assert code == 2
    assert "planned for mi300x, this machine has NVIDIA H200" in output
    assert site.calls("serve") == []


def test_dry_run_starts_nothing(site: Site) -> None:
    code, output = site.run("--dry-run")
    assert code == 0
    assert "vllm serve" in output
    assert "vllm bench serve" in output
    assert site.calls("serve") == []
