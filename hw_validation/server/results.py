"""From the benchmark client's per-request times to the values of a record, over one server or several replicas."""

from __future__ import annotations

from typing import Any

from hw_validation.server.bench import BenchmarkError
from hw_validation.summaries import summarize

Values = dict[str, float | None]


def check_lengths(results: list[dict[str, Any]], input_len: int, output_len: int, range_ratio: float) -> None:
    """Refuse prompts or answers of other lengths than asked for, which would make every figure wrong.

    A tokenizer may split a random prompt anew: up to 2 % of the prompts' tokens may differ. Answers may not.

    Raises:
        BenchmarkError: naming what was asked and what came.
    """
    outputs = [int(count) for result in results for count in result["output_lens"]]
    inputs = [int(count) for result in results for count in result["input_lens"]]
    low, high = output_len * (1 - range_ratio) - 1, output_len * (1 + range_ratio) + 1
    if not all(low < count < high for count in outputs):
        raise BenchmarkError(f"answers have {min(outputs)} to {max(outputs)} tokens, {output_len} were asked for")
    mean, slack = sum(inputs) / len(inputs), input_len * max(0.02, range_ratio)
    if abs(mean - input_len) > slack:
        raise BenchmarkError(f"prompts have {mean:.1f} tokens on average, {input_len} were asked for")


def requests_table(results: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Each request's sending time (s, from the first of its client) and time to first token (ms)."""
    sent: list[float] = []
    for result in results:
        times = [float(time) for time in result.get("start_times", [])]
        sent += [round(time - min(times), 5) for time in times]
    first = [round(1e3 * float(value), 3) for result in results for value in result["ttfts"]]
    return {"sent_s": sent, "ttft_ms": first}


def summarize_results(results: list[dict[str, Any]]) -> Values:
    """Values of a run from the detailed results of its clients, which ran side by side.

    Statistics are computed from the requests themselves (`ttfts`, `itls` in seconds), so that replicas merge
    exactly. The duration is the longest client's. TPOT is a request's mean gap; single tokens have none.

    Raises:
        BenchmarkError: failed requests, or a result without details.
    """
    for result in results:
        _check(result)
    duration_s = max(float(result["duration"]) for result in results)
    ttfts = [1e3 * value for result in results for value in result["ttfts"]]
    gaps = [[1e3 * gap for gap in request] for result in results for request in result["itls"]]
    outputs = sum(int(count) for result in results for count in result["output_lens"])
    inputs = sum(int(count) for result in results for count in result["input_lens"])
    values: Values = {
        "num_requests": float(len(ttfts)),
        "duration_s": duration_s,
        "requests_per_s": len(ttfts) / duration_s,
        "output_tokens_per_s": outputs / duration_s,
        "total_tokens_per_s": (inputs + outputs) / duration_s,
        "input_tokens_mean": inputs / len(ttfts),
        "output_tokens_mean": outputs / len(ttfts),
    }
    values |= summarize("ttft", "ms", ttfts)
    values |= summarize("tpot", "ms", _tpots(results, gaps))
    values |= summarize("itl", "ms", [gap for request in gaps for gap in request])
    values |= summarize("e2e", "ms", [first + sum(rest) for first, rest in zip(ttfts, gaps, strict=True)])
    return values


def _tpots(results: list[dict[str, Any]], gaps: list[list[float]]) -> list[float | None]:
    """Milliseconds a token after the first, by request; tokens are counted, since one message may carry several."""
    counts = [int(count) for result in results for count in result["output_lens"]]
    return [sum(rest) / (count - 1) if count > 1 else None for rest, count in zip(gaps, counts, strict=True)]


def _check(result: dict[str, Any]) -> None:
    for name in ("duration", "ttfts", "itls", "output_lens", "input_lens"):
        if name not in result:
            raise BenchmarkError(f"benchmark result: {name} is missing; the client must run with --save-detailed")
    failed = int(result.get("failed") or 0)
    errors = [error for error in result.get("errors", []) if error]
    if failed or errors:
        first = str(errors[0]).splitlines()[-1] if errors else "no reason given"
        raise BenchmarkError(f"benchmark result: {max(failed, len(errors))} requests failed, the first: {first}")
    if not result["ttfts"]:
        raise BenchmarkError("benchmark result: holds no requests")
