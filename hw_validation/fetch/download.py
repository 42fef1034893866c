"""Downloads that resume where they stopped and are checked before they count."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlparse
from urllib.request import HTTPRedirectHandler, build_opener
from urllib.request import Request as HttpRequest

import msgspec

from hw_validation.fetch.listing import Listing, RemoteFile
from moesim.errors import InputError

MANIFEST = "snapshot.json"
_CHUNK = 1 << 20
_TRIES = 5
Progress = Callable[[int, int, str], None]


class _KeepTokenHome(HTTPRedirectHandler):
    """Follows redirects; the access token is not sent on to another host."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlparse(newurl).netloc != urlparse(req.full_url).netloc:
            following.remove_header("Authorization")
        return following


def fetch(listing: Listing, base: str, folder: Path, progress: Progress, pause_s: float = 2.0) -> Path:
    """Download all files of a listing into `folder`; whole files that are there and right are kept.

    A file is written to NAME.part, verified, and then renamed; `snapshot.json` comes last, so that a folder that
    has one is whole. `progress` is called with (bytes done, bytes in all, file name).

    Raises:
        InputError: no room, a file that stays wrong, or a server that keeps failing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [file for file in listing.files if not _is_whole(folder / file.name, file)]
    _check_room(folder, missing)
    done = listing.num_bytes - sum(file.num_bytes for file in missing)
    for file in missing:
        url = f"{base}/{listing.repo}/resolve/{listing.commit}/{quote(file.name)}"
        _fetch_verified(
            url,
            file,
            folder,
            pause_s,
            lambda count, file=file, done=done: progress(done + count, listing.num_bytes, file.name),
        )
        done += file.num_bytes
    manifest = folder / MANIFEST
    manifest.write_bytes(msgspec.json.format(msgspec.json.encode(listing)) + b"\n")
    return manifest


def _fetch_verified(url: str, file: RemoteFile, folder: Path, pause_s: float, tick: Callable[[int], None]) -> None:
    """Download one file and verify it; a wrong one is fetched afresh once."""
    part, target = folder / f"{file.name}.part", folder / file.name
    found = ""
    for _ in range(2):
        _download(url, file, part, pause_s, tick)
        found = checksum_error(part, file)
        if not found:
            part.replace(target)
            return
        part.unlink()
    raise InputError(f"{url}: {found}; the file was removed")


def _download(url: str, file: RemoteFile, part: Path, pause_s: float, tick: Callable[[int], None]) -> None:
    """Append to `part` until it has all bytes; a broken connection is taken up where it broke."""
    failure: Exception | None = None
    for attempt in range(_TRIES):
        have = part.stat().st_size if part.exists() else 0
        if have > file.num_bytes:
            part.unlink()
            have = 0
        if have == file.num_bytes and part.exists():
            return
        try:
            _append(url, part, have, tick)
        except HTTPError as error:
            if error.code < 500 and error.code != 429:
                raise InputError(f"{url}: answers {error.code} {error.reason}{_hint(error.code)}") from None
            failure = error
        except (URLError, HTTPException, OSError) as error:
            failure = error
        if (part.stat().st_size if part.exists() else 0) == file.num_bytes:
            return
        time.sleep(pause_s * 2**attempt)
    raise InputError(f"{url}: gave up after {_TRIES} tries ({failure or 'the connection kept ending early'})")


def _append(url: str, part: Path, have: int, tick: Callable[[int], None]) -> None:
    """One request for the bytes from `have` on. A server that ignores the range starts the file again."""
    request = HttpRequest(url, headers=_headers() | ({"Range": f"bytes={have}-"} if have else {}))
    with build_opener(_KeepTokenHome).open(request, timeout=60) as answer:
        resumed = have and answer.status == 206
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab" if resumed else "wb") as stream:
            count = have if resumed else 0
            while chunk := _read(answer):
                stream.write(chunk)
                count += len(chunk)
                tick(count)


def _read(answer: Any) -> bytes:
    try:
        return answer.read(_CHUNK)
    except IncompleteRead as error:
        return error.partial


def _headers() -> dict[str, str]:
    """The user's access token, where the hub's own software finds one."""
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def checksum_error(path: Path, file: RemoteFile) -> str:
    """What is wrong with a downloaded file; empty when size and checksum are right."""
    size = path.stat().st_size
    if size != file.num_bytes:
        return f"{file.name} has {size} bytes, must have {file.num_bytes}"
    if file.sha256:
        found, wanted, name = _hash(path, hashlib.sha256()), file.sha256, "sha256"
    elif file.git_sha1:
        found, wanted, name = _hash(path, hashlib.sha1(f"blob {size}\0".encode())), file.git_sha1, "git sha1"
    else:
        return f"{file.name} has no checksum in the listing"
    return "" if found == wanted else f"{file.name} has {name} {found}, must have {wanted}"


def _is_whole(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and not checksum_error(path, file)


def _hash(path: Path, digest: Any) -> str:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check_room(folder: Path, files: list[RemoteFile]) -> None:
    parts = (folder / f"{file.name}.part" for file in files)
    have = sum(part.stat().st_size for part in parts if part.exists())
    need, room = sum(file.num_bytes for file in files) - have, shutil.disk_usage(folder).free
    if need > room:
        raise InputError(f"{folder}: has room for {room / 1e9:.1f} GB, {need / 1e9:.1f} GB are needed")


def _hint(code: int) -> str:
    return "; accept the model's terms on its page and log in with `hf auth login`" if code in (401, 403) else ""
