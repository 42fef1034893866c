"""Result files of `vllm bench serve`, `vllm bench latency` and `vllm bench throughput` (and tools that kept the form).

Times of `serve` carry _ms in their names; some summaries drop it and give seconds. Lists of single requests
(`ttfts`, `itls`) are always seconds. The files do not record the hardware and the engine's sizes: add them to the
client's call (`--metadata hardware=h100 gpus=8 tp=8`, kept as keys of the file), or write them to a YAML or JSON
file beside it, called as the result file without its suffix plus `.meta.yaml`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from calibration.schema import Hardware, Kind, Measurement, Provenance, Software, check_measurement
from calibration.sources import LIMITS, Limits, check_number, hash_file, read_json
from moesim.errors import InputError
from moesim.scenarios import Request
from moesim.specs.loading import read_document

_SERVE, _THROUGHPUT, _LATENCY = "request_throughput", "tokens_per_second", "avg_latency"
_TIME = re.compile(r"^(?P<statistic>mean|median|std|p\d+(?:\.\d+)?)_(?P<quantity>ttft|tpot|itl|e2el)(?P<unit>_ms)?$")
_WORDS = {field.name: field for field in msgspec.structs.fields(Request)}
_RATES = {
    "request_throughput": ("requests_per_s", "completed"),
    "output_throughput": ("output_tok_per_s", "total_output_tokens"),
    "total_token_throughput": ("total_tok_per_s", ""),
}
_TOLERANCE = 0.02
_EVEN = 0.02


def accepts(keys: set[str]) -> bool:
    """Whether a JSON object with these keys is a result of one of the three commands."""
    return {_SERVE, "duration"} <= keys or {_THROUGHPUT, "elapsed_time"} <= keys or _LATENCY in keys


def read(path: Path, limits: Limits = LIMITS) -> list[Measurement]:
    """The one run of a result file. Raises InputError naming the field at fault."""
    document = read_json(path, dict[str, Any], limits)
    for name, value in document.items():
        if isinstance(value, float | int):
            check_number(float(value), f"{path}: {name}")
    told = _read_told(path, document)
    if _SERVE in document:
        kind, values, request = _serve(document, path)
    elif _THROUGHPUT in document:
        kind, values, request = _throughput(document, path)
    else:
        kind, values, request = _latency(document, path)
    words = {**request, **{name: value for name, value in told.items() if name in _WORDS}}
    engine, assumed = _engine(told, document)
    item = Measurement(
        id=path.name.removesuffix(".gz").removesuffix(".json"),
        kind=kind,
        model=str(words.get("model", "")),
        hardware=Hardware(accelerator=str(told.get("hardware", "")), devices=_whole(told.get("gpus"))),
        software=Software(engine=engine, engine_version=str(told.get("engine_version", ""))),
        routing=str(told.get("routing", "")),
        request=words,
        point={name: document[name] for name in ("num_prompts", "request_rate", "max_concurrency") if name in document},
        values=values,
        labels=(*_labels(document), *assumed),
        provenance=Provenance(file=str(path), sha256=hash_file(path), date=str(document.get("date", ""))),
    )
    return [check_measurement(item, str(path))]


def _serve(document: dict[str, Any], path: Path) -> tuple[Kind, dict[str, float], dict[str, Any]]:
    duration = _positive(document, "duration", path)
    completed = _positive(document, "completed", path)
    values = {"elapsed_s": duration, **_times(document, duration, path)}
    for name, (word, total) in _RATES.items():
        if document.get(name) is not None:
            values[word] = _positive(document, name, path)
            _check_rate(document, name, total, duration, path)
    request: dict[str, Any] = {
        "num_prompts": int(completed),
        "input_len": round(_positive(document, "total_input_tokens", path) / completed),
        "output_len": max(round(_positive(document, "total_output_tokens", path) / completed), 1),
    }
    if document.get("model_id"):
        request["model"] = str(document["model_id"])
    if document.get("max_concurrency") is not None:
        request["concurrency"] = int(_positive(document, "max_concurrency", path))
    elif str(document.get("request_rate", "inf")) == "inf":
        request["request_rate"] = "inf"
    else:
        request["request_rate"] = _positive(document, "request_rate", path)
        request["burstiness"] = float(document.get("burstiness") or 1.0)
    return "serving", values, request


def _throughput(document: dict[str, Any], path: Path) -> tuple[Kind, dict[str, float], dict[str, Any]]:
    """An offline batch: elapsed seconds, requests, and all tokens (prompts included)."""
    elapsed = _positive(document, "elapsed_time", path)
    _check_rate(document, "requests_per_second", "num_requests", elapsed, path)
    _check_rate(document, _THROUGHPUT, "total_num_tokens", elapsed, path)
    values = {
        "elapsed_s": elapsed,
        "total_tok_per_s": _positive(document, _THROUGHPUT, path),
        "requests_per_s": _positive(document, "requests_per_second", path),
    }
    requests = int(_positive(document, "num_requests", path))
    return "offline", values, {"num_prompts": requests, "request_rate": "inf", "frontend": "offline"}


def _latency(document: dict[str, Any], path: Path) -> tuple[Kind, dict[str, float], dict[str, Any]]:
    """A batch run again and again: its mean time and percentiles in seconds. The batch's size is not recorded."""
    values = {"elapsed_s": _positive(document, _LATENCY, path)}
    percentiles = document.get("percentiles", {})
    if not isinstance(percentiles, dict):
        raise InputError(f"{path}: percentiles is no object")
    for name, value in percentiles.items():
        values[f"e2e_p{name}_ms"] = 1e3 * _number(value, f"{path}: percentiles.{name}")
    return "offline", values, {"request_rate": "inf", "frontend": "offline"}


def _times(document: dict[str, Any], duration_s: float, path: Path) -> dict[str, float]:
    """Statistics of TTFT, TPOT, ITL and end-to-end time in milliseconds.

    Raises:
        InputError: one is longer than the whole run, which is what a wrong unit looks like.
    """
    found: dict[str, float] = {}
    for name, value in document.items():
        match = _TIME.match(name)
        if match is None or value is None:
            continue
        time_ms = _number(value, f"{path}: {name}") * (1.0 if match["unit"] else 1e3)
        if time_ms < 0 or time_ms > 1e3 * duration_s * (1 + _TOLERANCE):
            unit = "milliseconds" if match["unit"] else "seconds"
            raise InputError(f"{path}: {name} is {value} (read as {unit}), longer than the run of {duration_s:g} s")
        statistic = "p50" if match["statistic"] == "median" else match["statistic"]
        found[f"{match['quantity'].replace('e2el', 'e2e')}_{statistic}_ms"] = time_ms
    return found


def _check_rate(document: dict[str, Any], rate: str, total: str, duration_s: float, path: Path) -> None:
    """A rate times the duration must be the total that the file gives too, or the units are mixed."""
    if not total or document.get(total) is None:
        return
    expected = _positive(document, total, path) / duration_s
    if abs(_positive(document, rate, path) / expected - 1) > _TOLERANCE:
        raise InputError(f"{path}: {rate} is {document[rate]}, but {total} over {duration_s:g} s is {expected:.6g}")


def _labels(document: dict[str, Any]) -> tuple[str, ...]:
    """`lengths_vary`: prompts or answers differ in length, of which a request has the mean only; `failed_requests`."""
    labels: list[str] = []
    for name in ("input_lens", "output_lens"):
        lengths = document.get(name)
        if isinstance(lengths, list) and lengths and all(isinstance(length, int) for length in lengths):
            mean = sum(lengths) / len(lengths)
            if max(lengths) > mean * (1 + _EVEN) or min(lengths) < mean * (1 - _EVEN):
                labels.append("lengths_vary")
                break
    errors = document.get("errors")
    if isinstance(errors, list) and any(errors):
        labels.append("failed_requests")
    return tuple(labels)


def _engine(told: dict[str, Any], document: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The engine, and a label where the file names only the endpoint's form ("openai"): then vLLM is assumed."""
    named = str(told.get("engine") or document.get("backend") or document.get("endpoint_type") or "")
    engine = named.partition("-")[0]
    return (engine, ()) if engine in ("vllm", "sglang") else ("vllm", ("engine_assumed",))


def _read_told(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """Words of a request among the file's keys or in the file beside it, which wins; numbers may be text."""
    told = {name: _plain(value) for name, value in document.items() if name in _WORDS and name != "request_rate"}
    stem = path.name.removesuffix(".gz").removesuffix(".json")
    for suffix in (".meta.yaml", ".meta.json"):
        beside = path.with_name(stem + suffix)
        if beside.is_file():
            extra = read_document(beside)
            if not isinstance(extra, dict):
                raise InputError(f"{beside}: must hold words such as hardware, gpus and tp")
            unknown = next((str(name) for name in extra if name not in _WORDS), None)
            if unknown is not None:
                raise InputError(f"{beside}: unknown word {unknown[:40]!r}; words are those of moesim simulate")
            told |= extra
    return told


def _plain(value: Any) -> Any:
    """--metadata keeps everything as text."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        return int(value)
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _positive(document: dict[str, Any], name: str, path: Path) -> float:
    value = _number(document.get(name), f"{path}: {name}")
    if value <= 0:
        raise InputError(f"{path}: {name} is {value}, must be positive")
    return value


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place} is {str(value)[:40]!r}, must be a number")
    return check_number(float(value), place)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
