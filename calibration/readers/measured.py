"""From measurements of any kind to the runs that `moesim validate` can predict, with the reason where it cannot."""

from __future__ import annotations

from collections.abc import Iterable

from calibration.readers.words import find_accelerator, measured_values
from calibration.runs import MeasuredRun, SkippedRow
from calibration.schema import Measurement, read_request
from moesim.errors import InputError
from moesim.specs.catalog import get_model

_RUNS = frozenset({"serving", "offline", "diffusion"})


def split_runs(items: Iterable[Measurement]) -> tuple[list[MeasuredRun], list[SkippedRow]]:
    """(runs, what is no run or cannot be predicted, with the reason)."""
    runs: list[MeasuredRun] = []
    skipped: list[SkippedRow] = []
    for item in items:
        answer = _to_run(item)
        if isinstance(answer, str):
            skipped.append(SkippedRow(id=item.id, file=item.provenance.file, reason=answer))
        else:
            runs.append(answer)
    return runs, skipped


def _to_run(item: Measurement) -> MeasuredRun | str:
    if item.kind not in _RUNS:
        return f"is a record of kind {item.kind}, which moesim calibrate reads; validate predicts whole runs"
    measured = measured_values(item.values)
    if not measured:
        return "holds no quantity that moesim predicts"
    for label, reason in _FLAWS.items():
        if label in item.labels:
            return reason
    try:
        hardware = find_accelerator(str(item.request.get("hardware", item.hardware.accelerator)))
        model = get_model(str(item.request.get("model", item.model)))
        if item.layers is not None and item.layers != model.num_layers:
            return f"was built with {item.layers} of the {model.num_layers} layers of {model.name}"
        words = {**item.request, "hardware": hardware, "model": model.name}
        request = read_request(words, f"{item.provenance.file} {item.id}")
    except InputError as error:
        return str(error)
    return MeasuredRun(
        id=item.id,
        engine=item.software.engine,
        request=request,
        measured=measured,
        flags=item.labels,
        configuration=item.configuration,
        series=item.series,
        site=item.site,
        noise=item.noise,
    )


_FLAWS = {
    "failed_requests": "some of its requests failed, so that its load is not what was asked for",
    "forwards_vary": "a threshold or a refreshed cache decides its number of forwards, which moesim takes from steps",
}
