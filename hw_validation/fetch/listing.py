"""The files of a model repository at one revision, with sizes and checksums; and which of them may be fetched."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import msgspec

from moesim.errors import InputError

ALLOWED = (
    r"config\.json",
    r"generation_config\.json",
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json",
    r"tokenizer\.model",
    r"merges\.txt",
    r"[\w.-]+\.safetensors",
    r"[\w.-]+\.safetensors\.index\.json",
)
_ALLOWED = re.compile("|".join(f"(?:{pattern})" for pattern in ALLOWED))
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the repository. Large files carry a sha256, small ones the sha1 that Git gives their content."""

    name: str
    num_bytes: int
    sha256: str = ""
    git_sha1: str = ""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A repository at one commit: files to fetch, and names of files that are left where they are."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]
    left_out: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all files to fetch."""
        return sum(file.num_bytes for file in self.files)


def is_allowed(name: str) -> bool:
    """Whether a file is configuration, tokenizer or safetensors in the top folder; code and pickles never are.

    >>> is_allowed("model-00001-of-00003.safetensors"), is_allowed("modeling_dbrx.py"), is_allowed("pytorch_model.bin")
    (True, False, False)
    """
    return _ALLOWED.fullmatch(name) is not None and len(PurePosixPath(name).parts) == 1


def endpoint(mirror: str | None) -> str:
    """Where to fetch from: the argument, or what the hub's own software uses (the variable HF_ENDPOINT, or the hub).

    Raises:
        InputError: huggingface_hub is not installed.
    """
    if mirror:
        return mirror.rstrip("/")
    try:
        from huggingface_hub.constants import ENDPOINT
    except ImportError:
        raise InputError("huggingface_hub is not installed; install moesim[hw]") from None
    return ENDPOINT.rstrip("/")


def list_files(repo: str, revision: str, base: str, wanted: tuple[str, ...] = (), weights: bool = True) -> Listing:
    """List a repository through the hub's interface, which mirrors offer as well.

    `wanted` names files to fetch instead of all allowed ones; `weights` False leaves safetensors out.

    Raises:
        InputError: no such repository or revision, no network, or a wanted file that may not be fetched.
    """
    if not _REPO.fullmatch(repo):
        raise InputError(f"model: {repo!r} is no repository; give owner/name, or a model's name in configs/models")
    refused = [name for name in wanted if not is_allowed(name)]
    if refused:
        raise InputError(
            f"file {refused[0]!r}: only configurations, tokenizers and safetensors are fetched, never code or pickles"
        )
    info = _ask_hub(repo, revision, base)
    names = [file.name for file in info[1]]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(f"file {missing[0]!r}: {repo} has no such file at {revision}")
    keep = [file for file in info[1] if is_allowed(file.name) and (not wanted or file.name in wanted)]
    if not weights:
        keep = [file for file in keep if not file.name.endswith(".safetensors")]
    if not any(file.name == "config.json" for file in info[1]):
        raise InputError(f"{repo} at {revision}: holds no config.json, so it is no model that an engine loads")
    kept = {file.name for file in keep}
    left = tuple(sorted(name for name in names if name not in kept))
    return Listing(repo=repo, commit=info[0], files=tuple(keep), left_out=left)


def _ask_hub(repo: str, revision: str, base: str) -> tuple[str, list[RemoteFile]]:
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise InputError("huggingface_hub is not installed; install moesim[hw]") from None
    try:
        info = HfApi(endpoint=base).model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{base}: {repo} at {revision!r} cannot be listed ({reason[:300]})") from None
    return str(info.sha), [_to_file(item) for item in info.siblings or []]


def _to_file(item: Any) -> RemoteFile:
    large = getattr(item, "lfs", None)
    sha256 = str(getattr(large, "sha256", None) or (large.get("sha256", "") if isinstance(large, dict) else ""))
    return RemoteFile(
        name=item.rfilename,
        num_bytes=int(item.size or 0),
        sha256=sha256 if large else "",
        git_sha1=str(item.blob_id or ""),
    )
