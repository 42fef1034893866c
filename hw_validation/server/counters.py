"""The server's own counters over a run, from its Prometheus page: preemptions and hits in the prefix cache."""

from __future__ import annotations

import re
from urllib.error import URLError
from urllib.request import urlopen

_LINE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{[^}]*\})? (?P<value>\S+)")
COUNTERS = {
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_queries_total": "prefix_cache_queried_tokens",
    "vllm:prefix_cache_hits_total": "prefix_cache_hit_tokens",
    "vllm:prompt_tokens_total": "server_prompt_tokens",
    "vllm:generation_tokens_total": "server_output_tokens",
}


def read_counters(base_url: str) -> dict[str, float]:
    """The counters in COUNTERS under the project's names, summed over engines; empty where there is no page."""
    try:
        with urlopen(f"{base_url}/metrics", timeout=30) as answer:
            return parse_counters(answer.read().decode("utf-8", errors="replace"))
    except (URLError, OSError):
        return {}


def parse_counters(page: str) -> dict[str, float]:
    """As `read_counters`, from the page's text."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        match = _LINE.match(line)
        name = COUNTERS.get(match["name"]) if match else None
        if match and name:
            found[name] = found.get(name, 0.0) + float(match["value"])
    return found


def difference(before: list[dict[str, float]], after: list[dict[str, float]]) -> dict[str, float | None]:
    """What the counters of all replicas grew by."""
    grown: dict[str, float | None] = {}
    for early, late in zip(before, after, strict=True):
        for name, value in late.items():
            grown[name] = (grown.get(name) or 0.0) + value - early.get(name, 0.0)
    return grown
