"""Every format of recorded routing gives the same profile; bad files are refused in one line."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.errors import InputError
from moesim.routing.counts_file import find_routing, read_counts
from moesim.routing.imbalance import gini
from moesim.routing.profile import save_profile
from moesim.routing.profile_files import read_profile

COUNTS = np.random.default_rng(0).poisson(60, (12, 3, 16))
Write = Callable[[Path], None]


def llada(path: Path) -> None:
    loads = [{"tokens": step.tolist(), "distinct_experts_a_forward": [], "max_over_mean": []} for step in COUNTS]
    records = [{"model": "m", "expert_loads": item} for item in [*loads, None]]
    path.write_text(json.dumps({"schema": "moesim.llada/1", "records": records}))


def long_parquet(path: Path) -> None:
    step, layer, expert = np.indices(COUNTS.shape)
    columns = {"step": step.ravel(), "layer": layer.ravel(), "expert": expert.ravel(), "tokens": COUNTS.ravel()}
    pd.DataFrame(columns).to_parquet(path)


STEPPED: dict[str, Write] = {
    "a.npy": lambda path: np.save(path, COUNTS),
    "a.npz": lambda path: np.savez(path, logical_count=COUNTS, other=np.zeros(3)),
    "a.json": lambda path: path.write_text(json.dumps({"logical_count": COUNTS.tolist()})) and None,
    "b.json": llada,
    "a.parquet": long_parquet,
}


@pytest.mark.parametrize("name", STEPPED)
def test_formats_with_time_give_one_profile(tmp_path: Path, name: str) -> None:
    reference = tmp_path / "reference.npy"
    np.save(reference, COUNTS)
    STEPPED[name](tmp_path / name)
    profile = read_profile(tmp_path / name)
    assert np.array_equal(profile.counts, COUNTS)
    assert profile.digest() == read_profile(reference).digest()
    assert profile.source.endswith(name)


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.parquet", "a.json"])
def test_formats_without_time_give_one_profile(tmp_path: Path, name: str) -> None:
    table, path = COUNTS.sum(axis=0), tmp_path / name
    if name == "a.csv":
        np.savetxt(path, table, fmt="%d", delimiter=",")
    elif name == "a.npz":
        np.savez(path, counts=table)
    elif name == "a.json":
        path.write_text(json.dumps(table.tolist()))
    else:
        pd.DataFrame(table).rename(columns=str).to_parquet(path)
    assert np.array_equal(read_profile(path).totals, table)
    assert read_counts(path).counts[2][5] == table[2, 5]
    assert find_routing(str(path)).kind == "counts"


def test_choices_give_counts_and_drop_dense_layers(tmp_path: Path) -> None:
    """vLLM's returned routed experts: layer 0 is dense, its buffer was never written."""
    chosen = np.argsort(np.random.default_rng(1).random((400, 3, 16)), axis=2)[:, :, :4]
    chosen[:, 0] = 0
    np.savez(tmp_path / "r.npz", routed_experts=chosen.astype(np.int16))
    profile = read_profile(tmp_path / "r.npz", 16)
    assert profile.kept_layers == (1, 2)
    assert profile.top_k == 4
    assert profile.totals.sum(axis=1).tolist() == [1600, 1600]
    assert np.array_equal(profile.totals[0], np.bincount(chosen[:, 1].ravel(), minlength=16))
    save_profile(profile, tmp_path / "clean.npz")
    assert read_profile(tmp_path / "clean.npz", 16).digest() == profile.digest()


def test_requests_saved_one_by_one_are_joined(tmp_path: Path) -> None:
    """numpy.savez(path, *[output.routed_experts for output in outputs]), with prompts of different lengths."""
    chosen = np.argsort(np.random.default_rng(1).random((400, 3, 16)), axis=2)[:, :, :4]
    np.savez(tmp_path / "requests.npz", *np.split(chosen, [100, 130, 333]))
    np.savez(tmp_path / "whole.npz", routed_experts=chosen)
    digests = {read_profile(tmp_path / name, 16).digest() for name in ("requests.npz", "whole.npz")}
    assert len(digests) == 1


def test_layers_without_experts_of_a_dump_are_left_out(tmp_path: Path) -> None:
    counts = COUNTS.copy()
    counts[:, 0] = 0
    np.savez(tmp_path / "d.npz", logical_count=counts)
    profile = read_profile(tmp_path / "d.npz")
    assert (profile.kept_layers, profile.num_file_layers) == ((1, 2), 3)


def test_dummy_tokens_are_cut_and_counted(tmp_path: Path) -> None:
    """A log of which nine tenths are warm-up: Gini 0.8 raw, below 0.1 once they are gone."""
    rng = np.random.default_rng(2)
    real = np.argsort(rng.random((900, 2, 60)), axis=2)[:, :, :4]
    dummy = np.tile(np.array([7, 1, 30, 4]), (8192, 2, 1))
    np.savez(tmp_path / "log.npz", routed_experts=np.concatenate([dummy, real]))
    raw = read_profile(tmp_path / "log.npz", 60, keep_warmup=True)
    clean = read_profile(tmp_path / "log.npz", 60)
    assert gini(raw.totals).min() > 0.8
    assert gini(clean.totals).max() < 0.1
    assert clean.cut == {"repeated dummy tokens": 8192}


def test_warm_up_steps_are_cut_and_counted(tmp_path: Path) -> None:
    counts = COUNTS.astype(float)
    identical = np.zeros((3, 3, 16))
    identical[:, :, :4] = 2048
    skewed = counts[:1].copy()
    skewed[:, :, :3] += 4000
    np.savez(tmp_path / "w.npz", logical_count=np.concatenate([identical, np.zeros((1, 3, 16)), skewed, counts]))
    profile = read_profile(tmp_path / "w.npz")
    assert profile.cut == {"empty steps": 1, "steps of identical tokens": 3, "warm-up steps": 1}
    assert np.array_equal(profile.counts, counts)


def test_torch_archives_are_read_without_torch_running(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(COUNTS)
    torch.save({"rank": 0, "logical_count": tensor, "note": "x"}, tmp_path / "dump.pt")
    torch.save(tensor.permute(0, 2, 1), tmp_path / "view.pt")
    assert np.array_equal(read_profile(tmp_path / "dump.pt").counts, COUNTS)
    assert read_profile(tmp_path / "view.pt").counts.shape == (12, 16, 3)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("ran",)


def evil_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({"logical_count": Evil()}))


def test_pickles_that_would_run_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil_archive(tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Evil()))
    np.save(tmp_path / "objects.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    expected = {"evil.pt": "would call builtins.print", "bare.pt": "bare pickle", "bare.pkl": "is a pickle"}
    for name, words in {**expected, "objects.npy": "pickles are refused"}.items():
        with pytest.raises(InputError, match=words):
            read_profile(tmp_path / name)
    assert "ran" not in capsys.readouterr().out


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save({"logical_count": torch.tensor(COUNTS)}, buffer)
    whole = buffer.getvalue()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 6):
            data[place] = int(rng.integers(0, 256))
        path = tmp_path / "damaged.pt"
        path.write_bytes(bytes(data))
        try:
            read_profile(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 0


BAD: dict[str, tuple[str, str]] = {
    "negative.csv": ("1,2,3\n4,-5,6\n", "row 2 column 2: -5.0 is no count"),
    "nan.csv": ("1,2,nan\n", "row 1 column 3: nan is no count"),
    "words.csv": ("1,2\n3,many\n", "line 2: 'many' is not a count"),
    "ragged.csv": ("1,2\n3\n", "line 2: 1 columns, the first line has 2"),
    "empty.csv": ("", "holds no table"),
    "zero.csv": ("1,2,3\n0,0,0\n", "row 2: sums to zero"),
    "short.csv": ("1,0,0,0,0,1,0,0\n", "too short to say anything: 2 choices in a layer of 8 experts"),
    "keys.json": ('{"loads": [[1, 2]]}', "none of the keys logical_count"),
    "text.json": ('{"logical_count": [["a"]]}', "not a table of counts"),
    "broken.json": ("{", "not valid JSON"),
    "suffix.xlsx": ("", "suffix '.xlsx'"),
    "records.json": ('{"records": [{"expert_loads": null}]}', "hold no expert loads"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_naming_the_place(tmp_path: Path, name: str) -> None:
    text, words = BAD[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words.replace(".", r"\.")) as error:
        read_profile(tmp_path / name)
    assert name in str(error.value)


@pytest.mark.parametrize("values", [np.array([["a", "b"]]), np.ones((2, 4)) * 1j, np.array([["2020-01-01"]], "M8[D]")])
def test_arrays_that_are_no_numbers_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", logical_count=values)
    with pytest.raises(InputError, match="must be numbers"):
        read_profile(tmp_path / "x.npz")


def test_experts_must_be_the_models(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "c.csv", COUNTS.sum(axis=0), fmt="%d", delimiter=",")
    with pytest.raises(InputError, match="has 16 experts a layer, the model has 64"):
        read_profile(tmp_path / "c.csv", 64)
    np.savez(tmp_path / "r.npz", routed_experts=np.tile(np.array([0, 9]), (50, 1, 1)))
    with pytest.raises(InputError, match="names expert 9, the model has 8"):
        read_profile(tmp_path / "r.npz", 8)
