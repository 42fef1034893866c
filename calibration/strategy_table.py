"""Throughput of deployments as a table: measured and simulated points that the light predictor learns from."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.parameter_file import write_file
from moesim.errors import InputError
from moesim.specs.catalog import get_hardware, get_model
from moesim.specs.hardware import Accelerator
from moesim.specs.model import Model, count_parameters, kv_bytes_per_token, weight_bytes

FloatArray = NDArray[np.float64]
DATA = Path(__file__).parent / "data" / "predictor"
MEASURED, SIMULATED = DATA / "measured.csv", DATA / "simulated.csv"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What a user asks about: a model on a number of accelerators, and the lengths of its requests."""

    model: str
    hardware: str
    gpus: int
    input_tokens: int
    output_tokens: int


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be chosen: parallel sizes, and the sequences in flight over all accelerators."""

    tp: int
    dp: int
    ep: int
    concurrency: int

    @property
    def strategy(self) -> str:
        """The name of the placement."""
        if self.ep == 1:
            return "tp_only" if self.dp == 1 else "colocate_single"
        if self.dp == 1:
            return "ep_only"
        return "dp_ep" if self.tp == 1 else "tp_ep_hybrid"


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A choice's throughput (output tokens/s over all accelerators) and median time per output token."""

    source: Literal["measured", "simulated"]
    question: Question
    choice: Choice
    tokens_per_s: float
    tpot_ms: float


_FIELDS = (
    *("source", "model", "hardware", "gpus", "input_tokens", "output_tokens"),
    *("tp", "dp", "ep", "concurrency", "tokens_per_s", "tpot_ms"),
)


def write_points(path: Path, points: Iterable[Point]) -> None:
    """A compact CSV. Raises InputError when it cannot be written."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_FIELDS)
    for point in points:
        asked, chosen = point.question, point.choice
        writer.writerow(
            (
                *(point.source, asked.model, asked.hardware, asked.gpus, asked.input_tokens, asked.output_tokens),
                *(chosen.tp, chosen.dp, chosen.ep, chosen.concurrency),
                *(f"{point.tokens_per_s:.5g}", f"{point.tpot_ms:.5g}"),
            )
        )
    write_file(path, stream.getvalue())


def read_points(path: Path) -> list[Point]:
    """The points of a file. Raises InputError naming file and line."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    found: list[Point] = []
    for line, row in enumerate(rows, start=2):
        try:
            nested = {**row, "question": row, "choice": row}
            point = msgspec.convert(nested, Point, strict=False)
        except msgspec.ValidationError as error:
            raise InputError(f"{path}: line {line}: {error}") from None
        if not (0 < point.tokens_per_s < math.inf and 0 < point.tpot_ms < math.inf):
            raise InputError(f"{path}: line {line}: tokens_per_s and tpot_ms must be positive numbers")
        found.append(point)
    return found


@cache
def _facts(model: str, hardware: str) -> tuple[Model, Accelerator, float, float, float]:
    """Model, accelerator, bytes of all weights, share of them that one token reads, KV bytes of a token."""
    found, accelerator = get_model(model), get_hardware(hardware)
    counts = count_parameters(found)
    return found, accelerator, weight_bytes(found), counts.active / counts.total, kv_bytes_per_token(found)


FEATURES = (
    *("gpus", "tp", "dp", "ep", "sequences_per_rank", "concurrency", "input_tokens", "output_tokens"),
    *("tokens_per_expert", "expert_bytes_share", "active_share", "weights_share_of_memory", "kv_share_of_memory"),
    *("bytes_per_flop", "fabric_share", "replication", "weights_read", "kv_read", "arithmetic", "layers_per_reading"),
)
"""The last four are times of a step in the unit of the targets (reading the weights that one token needs)."""


def features(question: Question, choice: Choice) -> list[float]:
    """Logarithms of what decides a step: sizes of the parts, and which share of the memory and fabric they take."""
    model, accelerator, weights, active, kv_bytes = _facts(question.model, question.hardware)
    moe = model.moe
    experts, top_k = (moe.num_experts, moe.top_k) if moe else (1, 1)
    memory = accelerator.hbm_bytes_visible * question.gpus
    length = question.input_tokens + question.output_tokens / 2
    touched = -math.expm1(choice.concurrency * math.log1p(-min(top_k / experts, 0.999999)))
    copies = choice.dp if choice.ep == 1 else 1
    unit = reading_s(question)
    rate = accelerator.hbm_bandwidth_bytes_per_s * question.gpus
    alone = active * weights
    routed = (1 - active) * weights / (1 - top_k / experts) if experts > top_k else 0.0
    read = max(alone - routed * top_k / experts, 0.0) + routed * touched
    flops = 2 * choice.concurrency * count_parameters(model).active
    return np.log(
        [
            question.gpus,
            choice.tp,
            choice.dp,
            choice.ep,
            max(choice.concurrency / choice.dp, 1 / choice.dp),
            choice.concurrency,
            question.input_tokens,
            question.output_tokens,
            choice.concurrency * top_k / experts,
            touched,
            active,
            weights * copies / memory,
            choice.concurrency * length * kv_bytes / memory,
            accelerator.hbm_bandwidth_bytes_per_s / accelerator.peak_flops_per_s["bf16"],
            accelerator.fabric.bandwidth_bytes_per_s / accelerator.hbm_bandwidth_bytes_per_s,
            copies,
            max(read, alone) * copies / rate / unit,
            choice.concurrency * length * kv_bytes / rate / unit,
            flops / (accelerator.peak_flops_per_s["bf16"] * question.gpus) / unit,
            model.num_layers / unit,
        ]
    ).tolist()


def reading_s(question: Question) -> float:
    """Seconds to read the weights that one token needs once, from all accelerators together: the unit of targets."""
    _, accelerator, weights, active, _ = _facts(question.model, question.hardware)
    return weights * active / (accelerator.hbm_bandwidth_bytes_per_s * question.gpus)


def targets(points: Sequence[Point]) -> FloatArray:
    """[points, 2]: logarithms of throughput and of time per token, in units of reading the active weights."""
    unit = np.array([reading_s(point.question) for point in points])
    rates = np.array([point.tokens_per_s for point in points])
    gaps = np.array([point.tpot_ms for point in points]) * 1e-3
    return np.stack([np.log(rates * unit), np.log(gaps / unit)], axis=1)
