"""`moesim calibrate`: sets, folds and rows on disk; bad words refused in one line; a broken run goes on."""

import dataclasses
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from calibration.calibrate_command import CalibrateRequest, run_calibrate
from calibration.folds import read_folds
from calibration.kernel_fit import fit_kernels
from calibration.kernels import families
from calibration.kernels.collectives import PEER
from calibration.kernels.tables import read_table
from calibration.parameter_file import read_parameters
from moesim.errors import InputError
from moesim.specs.parameters import read_set
from tests.calibration.synthetic import TRUTH, measure, planned_runs, truth, write_runs

WORDS = CalibrateRequest(
    files=(), output=None, base=None, recipes=(), data=(), cross_validate=None, report=None, bootstrap=0, state=None,
    jobs=1,
)  # fmt: skip


def ask(**words):
    """The command's words, all else left out."""
    return dataclasses.replace(WORDS, **words)


def silent(*_):
    """No progress."""


@pytest.fixture(scope="module")
def runs_file(tmp_path_factory):
    """Runs of two machines with known constants."""
    rng = np.random.default_rng(21)
    runs = [
        item
        for site, launch_s in (("one", 5e-5), ("two", 9e-5))
        for item in measure(
            planned_runs(models=("olmoe-1b-7b",), concurrency=(1, 4), eager=(True,), site=site),
            truth({**TRUTH, "host_launch_s": launch_s}),
            rng,
        )
    ]
    return write_runs(tmp_path_factory.mktemp("data") / "runs.json", runs)


def write_peer_table(folder: Path, slower: float = 1.0) -> Path:
    """All-reduces of a known machine, in the layout of the kernel tables."""
    path = folder / "a100_sxm" / "vllm-0.14.0" / "custom_allreduce_perf.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = [2**power for power in range(8, 22)]
    rows = pd.DataFrame(
        [
            {"num_gpus": gpus, "message_size": size, "backend": backend, "latency": 1.0}
            for gpus in (2, 4, 8)
            for size in sizes
            for backend in ("vllm_graph", "vllm_eager")
        ]
    )
    rows.to_parquet(path)
    predicted = PEER.predict(read_table(path), PEER.constants({}))
    rows["latency"] = 1e3 * slower * predicted * np.exp(0.02 * np.random.default_rng(1).standard_normal(len(rows)))
    rows.to_parquet(path)
    return path


@pytest.fixture(scope="module")
def made(runs_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    table = write_peer_table(folder / "tables")
    words = ask(files=(str(runs_file), str(table)), output=str(folder / "mine.yaml"), base="prior-nvidia")
    return folder, run_calibrate(words, silent)


def test_a_set_of_files_is_written_with_its_evidence(made, runs_file):
    folder, reports = made
    written = read_parameters(folder / "mine.yaml")
    assert written.name == "mine"
    assert written.accelerators == ("a100-80gb",)
    assert written.calibrated
    assert set(written.sites) == {"one", "two"}
    slower = written.sites["two"]["host_launch_s"].value / written.sites["one"]["host_launch_s"].value
    assert slower == pytest.approx(1.8, rel=0.1)
    assert len(written.evidence.inputs) == 2
    assert all(len(digest) == 64 for digest in written.evidence.inputs.values())
    assert any(name.endswith("runs.json") for name in written.evidence.inputs)
    assert written.evidence.errors["configuration"].rows > 0
    rows = (folder / "rows" / "mine.txt").read_text().split()
    assert len(rows) == 4
    assert reports[0].parameters.name == "mine"


def test_every_constant_has_a_status_and_moved_ones_their_source(made):
    folder, reports = made
    rows = reports[0].rows()
    assert {row["status"] for row in rows} <= {"prior", "fitted", "prior_only", "at_bound"}
    written = read_parameters(folder / "mine.yaml")
    moved = [item for item in written.parameters.values() if item.status == "fitted"]
    assert moved
    assert all(item.source.startswith("fitted") for item in moved)
    never_asked = written.parameters["mla_start_s"]
    assert never_asked.status in {"prior", "prior_only"}
    assert (
        written.kernels["custom_allreduce"].error < 0.06 if "custom_allreduce" in written.kernels else written.kernels
    )


def test_tables_that_did_not_change_are_not_fitted_again(runs_file, tmp_path, monkeypatch):
    """A run that broke after its tables: the second one takes their fits from --state and gives the same set."""
    table = write_peer_table(tmp_path / "tables")
    words = ask(files=(str(table),), output=str(tmp_path / "a.yaml"), base="prior-nvidia", state=str(tmp_path / "s"))
    run_calibrate(words, silent)

    def refuse(*_, **__):
        raise AssertionError("fitted again")

    monkeypatch.setattr("calibration.kernel_fit.fit_family", refuse)
    monkeypatch.setattr(families, "fit_family", refuse)
    run_calibrate(dataclasses.replace(words, output=str(tmp_path / "b" / "a.yaml")), silent)
    assert (tmp_path / "a.yaml").read_text() == (tmp_path / "b" / "a.yaml").read_text()
    write_peer_table(tmp_path / "tables", slower=1.5)
    with pytest.raises(AssertionError, match="fitted again"):
        run_calibrate(words, silent)


def test_what_an_engine_adds_to_a_kernel_is_taken_over_from_the_base(tmp_path):
    """The base's runs moved one constant to 1.3 times its table; one that no run moved is the new table's alone."""
    table = write_peer_table(tmp_path)
    prior = read_set("prior-nvidia")
    ((family, fit),) = fit_kernels(prior, [table], jobs=1).parameters.kernels.items()
    one, other = "one_shot_s", "two_shot_s"
    moved = {
        one: msgspec.structs.replace(prior.parameters[one], value=1.3 * fit.constants[one], status="fitted"),
        other: msgspec.structs.replace(prior.parameters[other], value=1.3 * fit.constants[other], status="prior_only"),
    }
    base = msgspec.structs.replace(prior, parameters=dict(prior.parameters) | moved, kernels={family: fit})
    made = fit_kernels(base, [table], jobs=1).parameters
    assert made.parameters[one].value == pytest.approx(1.3 * fit.constants[one])
    assert made.parameters[other].value == pytest.approx(fit.constants[other])
    assert made.kernels[family].constants == fit.constants


def test_an_interrupted_run_leaves_the_good_set(runs_file, tmp_path, monkeypatch):
    target = tmp_path / "mine.yaml"
    target.write_text("good: set\n")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("calibration.pipeline.fit_runs", stop)
    with pytest.raises(KeyboardInterrupt):
        run_calibrate(ask(files=(str(runs_file),), output=str(target), base="prior-nvidia"), silent)
    assert target.read_text() == "good: set\n"


def test_cross_validation_writes_folds_for_every_run(runs_file, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"{{name: r, base: prior-nvidia, engine: vllm, accelerators: [a100-80gb], runs: [{runs_file.name}],"
        " free: [gemm_slowdown, experts_slowdown], sites: {'*': [host_launch_s]},"
        " outputs: {a100-80gb-vllm: {accelerators: [a100-80gb], sites: ['*']}}}"
    )
    words = ask(recipes=(str(recipe),), data=(str(runs_file.parent),), output=str(tmp_path))
    run_calibrate(dataclasses.replace(words, cross_validate="configuration"), silent)
    folds = read_folds(tmp_path)
    assert folds.index.kind == "configuration"
    (units,) = [item.units for item in folds.index.sets.values()]
    assert set(units) == {"olmoe-1b-7b/1", "olmoe-1b-7b/4"}
    assert len(set(units.values())) == 2


def test_files_of_two_accelerators_are_refused_with_their_names(runs_file, tmp_path):
    other = planned_runs(models=("olmoe-1b-7b",), concurrency=(1,), hardware="h200")
    second = write_runs(tmp_path / "h200.json", other)
    with pytest.raises(InputError, match="a100-80gb, h200"):
        run_calibrate(ask(files=(str(runs_file), str(second)), output=str(tmp_path / "x.yaml")), silent)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "files of measured rows, or --recipe"),
        ({"files": ("runs",)}, "-o is missing"),
        ({"files": ("runs",), "output": "x.yaml", "cross_validate": "modell"}, "unknown 'modell'.*model"),
        ({"files": ("runs",), "output": "x.yaml", "base": "prior-nvidea"}, "prior-nvidia"),
        ({"files": ("absent.csv",), "output": "x.yaml"}, "absent.csv"),
        ({"recipes": ("absent.yaml",), "output": "x"}, "absent.yaml"),
    ],
)
def test_bad_words_are_refused_in_one_line(runs_file, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    words = {**words, "files": tuple(str(runs_file) if name == "runs" else name for name in words.get("files", ()))}
    with pytest.raises(InputError, match=message) as caught:
        run_calibrate(ask(**words), silent)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.yaml").exists()


def test_a_recipe_whose_files_are_missing_names_the_folders(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "{name: r, base: prior-nvidia, engine: vllm, accelerators: [a100-80gb], runs: [nowhere.csv],"
        " outputs: {r: {accelerators: [a100-80gb]}}}"
    )
    with pytest.raises(InputError, match=f"nowhere.csv: not found under {tmp_path}"):
        run_calibrate(ask(recipes=(str(recipe),), data=(str(tmp_path),), output=str(tmp_path / "o")), silent)
