"""From measurements of any kind to the runs that `moesim validate` can predict, with the reason where it cannot."""

from __future__ import annotations

from collections.abc import Iterable

from calibration.readers import steps
from calibration.readers.steadiness import flaws_of
from calibration.readers.words import find_accelerator, measured_values
from calibration.runs import MeasuredRun, SkippedRow
from calibration.schema import Measurement, read_request
from moesim.errors import InputError
from moesim.scenarios import Request
from moesim.specs.catalog import get_model

_RUNS = frozenset({"serving", "offline", "diffusion"})


def split_runs(items: Iterable[Measurement]) -> tuple[list[MeasuredRun], list[SkippedRow]]:
    """(runs, what is no run or cannot be predicted, with the reason)."""
    runs: list[MeasuredRun] = []
    skipped: list[SkippedRow] = []
    items = list(items)
    alike = steps.routed_alike(items)
    for item in items:
        answer = steps.ALIKE if item.id in alike else _to_run(item)
        if isinstance(answer, str):
            skipped.append(SkippedRow(id=item.id, file=item.provenance.file, reason=answer))
        else:
            runs.append(answer)
    return runs, skipped


def _to_run(item: Measurement) -> MeasuredRun | str:
    if item.kind in steps.KINDS:
        return _step_run(item)
    measured = measured_values(item.values)
    if item.steps:  # a loop whose every step was recorded: its means hold the compilation of new batch shapes
        measured = {name: value for name, value in measured.items() if name in _STEADY}
    if reason := _why_not(item, measured):
        return reason
    try:
        request = _request(item)
    except InputError as error:
        return str(error)
    return MeasuredRun(
        id=f"{item.site}/{item.id}" if item.site else item.id,
        engine=item.software.engine,
        request=request,
        measured=measured,
        flags=(*item.labels, *flaws_of(item)),
        configuration=item.configuration,
        series=item.series,
        site=item.site,
        noise=item.noise,
    )


def _step_run(item: Measurement) -> MeasuredRun | str:
    try:
        return steps.step_run(item)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        return f"is no point of a step sweep: {type(error).__name__} {error}"


def _why_not(item: Measurement, measured: dict[str, float]) -> str:
    """Why the record cannot be predicted, or ''."""
    if item.kind not in _RUNS:
        return f"is a record of kind {item.kind}, which moesim calibrate reads; validate predicts whole runs"
    if steps.routing_of(item) is None:
        return steps.SKEWED
    if not measured:
        return "holds no quantity that moesim predicts"
    return next((reason for label, reason in _FLAWS.items() if label in item.labels), "")


def _request(item: Measurement) -> Request:
    """The request with the catalogue's names. Raises InputError for unknown names or a model with fewer layers."""
    hardware = find_accelerator(str(item.request.get("hardware", item.hardware.accelerator)))
    model = get_model(str(item.request.get("model", item.model)))
    if item.layers is not None and item.layers != model.num_layers:
        raise InputError(f"was built with {item.layers} of the {model.num_layers} layers of {model.name}")
    words = {**item.request, "hardware": hardware, "model": model.name}
    if steps.is_skewed(item):
        words["routing"] = steps.routing_of(item)
    return read_request(words, f"{item.provenance.file} {item.id}")


_STEADY = ("output_tok_per_s", "itl_p50_ms", "tpot_p50_ms", "ttft_p50_ms")
_FLAWS = {
    "failed_requests": "some of its requests failed, so that its load is not what was asked for",
    "collapsed_routing": "its random weights routed all positions alike to few experts, which the record does not name",
    "forwards_vary": "a threshold or a refreshed cache decides its number of forwards, which moesim takes from steps",
}
