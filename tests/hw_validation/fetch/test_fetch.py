from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("huggingface_hub")

from hw_validation.fetch.download import MANIFEST, fetch
from hw_validation.fetch.listing import Listing, is_allowed, list_files
from moesim.errors import InputError
from tests.hw_validation.fetch.hub import COMMIT, Hub

WEIGHTS = os.urandom(3_000_000)
FILES = {
    "config.json": b'{"model_type": "olmoe"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00001.safetensors": WEIGHTS,
    "modeling_olmoe.py": b"import os",
    "pytorch_model.bin": b"\x80\x04pickle",
}


def take(hub: Hub, folder: Path) -> Listing:
    listing = list_files("owner/model", "main", hub.url)
    fetch(listing, hub.url, folder, lambda *_: None, pause_s=0.0)
    return listing


def test_snapshot_is_whole_without_code_or_pickles(tmp_path: Path) -> None:
    with Hub(dict(FILES)) as hub:
        listing = take(hub, tmp_path)
    assert listing.left_out == ("modeling_olmoe.py", "pytorch_model.bin")
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model-00001-of-00001.safetensors",
        MANIFEST,
    }
    assert (tmp_path / "model-00001-of-00001.safetensors").read_bytes() == WEIGHTS
    manifest = msgspec.json.decode((tmp_path / MANIFEST).read_bytes(), type=Listing)
    assert manifest.commit == COMMIT
    assert not [path for path, _ in hub.requests if path.endswith((".py", ".bin"))]


def test_broken_download_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    with Hub(dict(FILES), cut={name: 1_200_000}) as hub:
        take(hub, tmp_path)
    ranges = [wanted for path, wanted in hub.requests if path.endswith(name)]
    assert ranges == ["", "bytes=1200000-"]
    assert (tmp_path / name).read_bytes() == WEIGHTS


def test_part_of_an_earlier_call_is_kept(tmp_path: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    (tmp_path / f"{name}.part").write_bytes(WEIGHTS[:2_000_000])
    with Hub(dict(FILES)) as hub:
        take(hub, tmp_path)
    assert [wanted for path, wanted in hub.requests if path.endswith(name)] == ["bytes=2000000-"]
    assert (tmp_path / name).read_bytes() == WEIGHTS


def test_server_without_ranges_starts_the_file_again(tmp_path: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    (tmp_path / f"{name}.part").write_bytes(WEIGHTS[:2_000_000])
    with Hub(dict(FILES), ignore_ranges=True) as hub:
        take(hub, tmp_path)
    assert (tmp_path / name).read_bytes() == WEIGHTS


def test_wrong_part_is_found_by_its_checksum_and_fetched_afresh(tmp_path: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    (tmp_path / f"{name}.part").write_bytes(b"0" * 2_000_000)
    with Hub(dict(FILES)) as hub:
        take(hub, tmp_path)
    assert (tmp_path / name).read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["model-00001-of-00001.safetensors", "config.json"])
def test_wrong_checksum_leaves_no_file(tmp_path: Path, name: str) -> None:
    with Hub(dict(FILES), lies={name}) as hub, pytest.raises(InputError, match=r"must have .*removed"):
        take(hub, tmp_path)
    assert not list(tmp_path.glob(f"{name}*"))
    assert not (tmp_path / MANIFEST).exists()


def test_second_call_fetches_nothing(tmp_path: Path) -> None:
    with Hub(dict(FILES)) as hub:
        take(hub, tmp_path)
        hub.requests.clear()
        take(hub, tmp_path)
        assert not [path for path, _ in hub.requests if "/resolve/" in path]


def test_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    with Hub(dict(FILES)) as hub:
        take(hub, tmp_path)
        (tmp_path / "config.json").write_bytes(b'{"model_type": "other"}')
        take(hub, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == FILES["config.json"]


@pytest.mark.parametrize("name", ["modeling_olmoe.py", "pytorch_model.bin", "../config.json", "x/config.json"])
def test_asking_for_code_is_refused(name: str) -> None:
    with Hub(dict(FILES)) as hub, pytest.raises(InputError, match="never code or pickles"):
        list_files("owner/model", "main", hub.url, (name,))


def test_unknown_repository_is_one_line() -> None:
    with Hub(dict(FILES)) as hub, pytest.raises(InputError, match="owner/other at 'main' cannot be listed") as caught:
        list_files("owner/other", "main", hub.url)
    assert "\n" not in str(caught.value)


def test_command_fetches_from_a_mirror_without_weights(tmp_path: Path) -> None:
    with Hub(dict(FILES)) as hub:
        command = [sys.executable, "-m", "hw_validation", "fetch", "owner/model@main", "--config-only"]
        command += ["--mirror", hub.url, "--models-dir", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"owner/model {COMMIT}: 2 files" in done.stdout
    assert "pytorch_model.bin" in done.stderr
    names = {path.name for path in (tmp_path / "owner--model").iterdir()}
    assert names == {"config.json", "tokenizer.json", MANIFEST}


@given(st.text(max_size=40))
def test_no_name_with_a_folder_or_a_code_ending_is_allowed(name: str) -> None:
    if is_allowed(name):
        assert "/" not in name
        assert "\\" not in name
        assert name.endswith((".json", ".safetensors", ".model", ".txt"))
