"""A model hub on this machine: lists a repository, serves its files with ranges, and can be told to misbehave."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


@dataclass
class Hub:
    """`cut`: bytes after which the next download of a file breaks off; `lies`: files listed with a wrong checksum."""

    files: dict[str, bytes]
    cut: dict[str, int] = field(default_factory=dict)
    lies: set[str] = field(default_factory=set)
    ignore_ranges: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> Hub:
        hub = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def listing(self) -> dict[str, object]:
        return {"id": "owner/model", "sha": COMMIT, "siblings": [self._sibling(name) for name in self.files]}

    def _sibling(self, name: str) -> dict[str, object]:
        content = self.files[name] + (b"x" if name in self.lies else b"")
        size = len(self.files[name])
        sibling: dict[str, object] = {"rfilename": name, "size": size}
        sibling["blobId"] = hashlib.sha1(f"blob {size}\0".encode() + content).hexdigest()
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134, "oid": sha256}
        return sibling

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        wanted = request.headers.get("Range", "")
        self.requests.append((path, wanted))
        if path.startswith("/api/models/owner/model"):
            body, status = json.dumps(self.listing()).encode(), 200
        elif path.startswith(f"/owner/model/resolve/{COMMIT}/"):
            name = path.rsplit("/", 1)[1]
            begin = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and not self.ignore_ranges else 0
            body, status = self.files[name][begin:], 206 if begin else 200
            self._send(request, status, body, self.cut.pop(name, None))
            return
        else:
            body, status = b"{}", 404
        self._send(request, status, body, None)

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, cut: int | None) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        request.wfile.write(body if cut is None else body[:cut])
