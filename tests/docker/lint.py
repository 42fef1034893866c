"""The hadolint rules that matter here, over a Dockerfile's text; codes are hadolint's, MS ones are ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

INSTRUCTION = re.compile(r"^(?P<word>[A-Z]+)\s+(?P<rest>.*)$", re.S)


def instructions(text: str) -> list[tuple[str, str, frozenset[str]]]:
    """(instruction, its words in one line, rules ignored by the comment above it)."""
    found: list[tuple[str, str, frozenset[str]]] = []
    ignored: frozenset[str] = frozenset()
    pending = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            match = re.search(r"hadolint ignore=([\w,]+)", line)
            ignored = frozenset(match[1].split(",")) if match else ignored
            continue
        if not line.strip() and not pending:
            continue
        pending += line.rstrip("\\").strip() + " "
        if line.endswith("\\"):
            continue
        match = INSTRUCTION.match(pending.strip())
        assert match, pending
        found.append((match["word"], match["rest"].strip(), ignored))
        pending, ignored = "", frozenset()
    return found


def lint(text: str) -> list[str]:
    """ "CODE: what" for every broken rule."""
    parsed = instructions(text)
    broken = [*_whole_file(parsed)]
    for word, rest, ignored in parsed:
        checks = {"FROM": _from, "RUN": _run, "ADD": _add, "WORKDIR": _workdir, "CMD": _json, "ENTRYPOINT": _json}
        problems = checks[word](rest) if word in checks else ()
        broken += [problem for problem in problems if problem.partition(":")[0] not in ignored]
    return broken


def _whole_file(parsed: list[tuple[str, str, frozenset[str]]]) -> Iterator[str]:
    words = [word for word, _, _ in parsed]
    users = [rest for word, rest, _ in parsed if word == "USER"]
    if not users or users[-1].split(":")[0] in ("root", "0"):
        yield "DL3002: the last USER is root, or there is none"
    if "HEALTHCHECK" not in words:
        yield "DL3057: no HEALTHCHECK"
    for unique in ("CMD", "ENTRYPOINT", "HEALTHCHECK"):
        if words.count(unique) > 1:
            yield f"DL3012: more than one {unique}"
    piped = any(word == "RUN" and re.search(r"[^|]\|[^|]", rest) for word, rest, _ in parsed)
    if piped and not any(word == "SHELL" and "pipefail" in rest for word, rest, _ in parsed):
        yield "DL4006: a pipe without SHELL -o pipefail"
    if re.search(
        r"(?i)(password|secret|token|api_key)\s*=", " ".join(rest for w, rest, _ in parsed if w in ("ENV", "ARG"))
    ):
        yield "MS001: a secret in ENV or ARG"


def _from(rest: str) -> Iterator[str]:
    image = rest.split(maxsplit=1)[0]
    name, _, digest = image.partition("@")
    tag = name.rpartition(":")[2] if ":" in name.rpartition("/")[2] else ""
    if not tag and not digest:
        yield f"DL3006: {image} has no tag"
    if tag == "latest":
        yield f"DL3007: {image} is latest"
    if "." in name.split("/")[0] and "/" in name:
        yield f"MS002: {image} names a registry's host"


def _run(rest: str) -> Iterator[str]:
    if re.search(r"\bsudo\b", rest):
        yield "DL3004: sudo"
    if re.search(r"(^|&&\s*)cd\s", rest):
        yield "DL3003: cd instead of WORKDIR"
    for command in re.split(r"&&|;", rest):
        yield from _apt(command, rest)
        yield from _pip(command)


def _apt(command: str, rest: str) -> Iterator[str]:
    if "apt-get install" not in command:
        if re.search(r"\bapt install\b", command):
            yield "DL3027: apt instead of apt-get"
        return
    packages = [word for word in command.split("install", 1)[1].split() if not word.startswith("-")]
    if not all("=" in package for package in packages):
        yield "DL3008: apt packages without versions"
    if "/var/lib/apt/lists" not in rest:
        yield "DL3009: apt lists are left"
    if not re.search(r"(-y|--yes|--assume-yes)\b", command):
        yield "DL3014: apt-get install without -y"
    if "--no-install-recommends" not in command:
        yield "DL3015: recommended packages are installed"


def _pip(command: str) -> Iterator[str]:
    match = re.search(r"pip3? install(?P<words>.*)", command)
    if not match:
        return
    if "--no-cache-dir" not in match["words"]:
        yield "DL3042: pip keeps its cache"
    words, skip = match["words"].split(), False
    for word in words:
        if skip or word.startswith("-"):
            skip = word in ("-r", "-c", "--requirement", "--constraint")
            continue
        if word != "." and "==" not in word:
            yield f"DL3013: {word} has no version"


def _add(rest: str) -> Iterator[str]:
    yield f"DL3020: ADD {rest} instead of COPY"


def _workdir(rest: str) -> Iterator[str]:
    if not rest.startswith(("/", "$")):
        yield f"DL3000: WORKDIR {rest} is relative"


def _json(rest: str) -> Iterator[str]:
    try:
        json.loads(rest)
    except json.JSONDecodeError:
        yield f"DL3025: {rest} is no JSON list"
