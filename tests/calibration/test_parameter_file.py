"""Parameter sets on disk: exact numbers, never half a file, never a bad set over a good one."""

import os

import msgspec
import numpy as np
import pytest
import yaml

from calibration.parameter_file import read_parameters, write_file, write_parameters
from moesim.errors import InputError
from moesim.specs.parameters import Correlation, Parameter, scaled
from tests.calibration.synthetic import prior


def test_a_set_reads_back_as_it_was(tmp_path):
    path = tmp_path / "new" / "set.yaml"
    kept = msgspec.structs.replace(
        prior(),
        sites={"here": {"host_launch_s": Parameter(value=8.5e-05, log_sd=0.25, unit="s", source="test")}},
        correlation=Correlation(names=("kernel_s", "gemm_slowdown"), rows=((1.0, -0.4), (-0.4, 1.0))),
    )
    write_parameters(kept, path)
    assert read_parameters(path) == kept


def test_numbers_keep_eight_digits_and_stay_numbers(tmp_path):
    """YAML reads 1e-06 as text; what is written must come back as the number, from 1e-12 to 1e18."""
    path = tmp_path / "set.yaml"
    values = np.random.default_rng(8).uniform(-12, 18, len(prior().parameters))
    values[:7] = (-6, -5, 0, 3, 15, 16, 17)
    moved = {
        name: msgspec.structs.replace(item, value=float(10**value))
        for (name, item), value in zip(prior().parameters.items(), values, strict=True)
    }
    write_parameters(msgspec.structs.replace(prior(), parameters=moved), path)
    again = read_parameters(path)
    for name, item in moved.items():
        assert again[name] == pytest.approx(item.value, rel=1e-7)
    write_parameters(again, path)
    assert read_parameters(path) == again


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "set.yaml"
    write_parameters(prior(), path)
    before = path.read_bytes()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    monkeypatch.setattr("pathlib.Path.replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_parameters(scaled(prior(), "kernel_s", 2.0), path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["set.yaml"]


def test_a_bad_set_is_never_written(tmp_path):
    path = tmp_path / "set.yaml"
    write_parameters(prior(), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="kernel_s is nan"):
        write_parameters(scaled(prior(), "kernel_s", float("nan")), path)
    lacking = {name: value for name, value in prior().parameters.items() if name != "kernel_s"}
    with pytest.raises(InputError, match="'kernel_s' is missing"):
        write_parameters(msgspec.structs.replace(prior(), parameters=lacking), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "set.yaml"),
        (lambda text: "!!python/object/apply:os.system ['true']\n" + text, "not valid YAML"),
        (lambda text: text.replace("value: ", "value: -", 1), "must be positive"),
        (lambda text: text + "extra: 1\n", "extra"),
        (lambda text: text.replace("kernel_s:", "kernel_z:", 1), "kernel"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "set.yaml"
    write_parameters(prior(), path)
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        read_parameters(path)
    assert "\n" not in str(caught.value)
    assert "set.yaml" in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="file"):
        write_file(blocked / "set.yaml", "x")


def test_the_file_is_plain_yaml(tmp_path):
    path = tmp_path / "set.yaml"
    write_parameters(prior(), path)
    document = yaml.safe_load(path.read_text())
    assert isinstance(document["parameters"]["kernel_s"]["value"], float)
