"""What following moesim costs: the deployment it ranks first under a load, against the best of those measured.

python -m analysis.deployment_regret FILES... [--json]

Files of loops of the same models on machines of the same kind under several deployments. Loads that fewer than two
deployments were measured under are left out. A run's own flaws (kernels compiled while requests waited) count against
the deployment that met them, so loads are also summed up without those that hold such a run.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from calibration.readers import read_runs
from calibration.rejection import reason_to_reject
from calibration.runs import MeasuredRun
from calibration.validation import predict_run
from moesim.cli.output import print_json, print_table

_METRIC = "output_tok_per_s"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A deployment under one load: tokens a second, and whether the measurement was disturbed."""

    deployment: str
    measured: float
    predicted: float
    disturbed: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """What moesim chose under a load among `candidates`, and the share of the best throughput lost by it."""

    load: str
    candidates: int
    chosen: str
    best: str
    regret: float
    disturbed: bool


def read_candidates(paths: Iterable[Path]) -> dict[str, list[Candidate]]:
    """Deployments by load, of every loop that moesim can predict."""
    found: dict[str, list[Candidate]] = defaultdict(list)
    for path in paths:
        for run in read_runs(path)[0]:
            if run.step is None and _METRIC in run.measured:
                _add_candidate(found, run)
    return dict(found)


def _add_candidate(found: dict[str, list[Candidate]], run: MeasuredRun) -> None:
    answer = predict_run(run)
    if isinstance(answer, str):
        return
    row = next(row for row in answer[1] if row.metric == _METRIC)
    request = run.request
    load = f"{request.model} {request.hardware} {request.concurrency} callers {request.input_len}/{request.output_len}"
    sizes = f"TP{request.tp or 1} DP{request.dp or 1} EP{request.ep or 1}"
    disturbed = reason_to_reject(run, _METRIC) is not None
    found[load].append(Candidate(sizes, row.measured, row.predicted, disturbed))


def choose(load: str, candidates: Sequence[Candidate]) -> Choice:
    """The candidate with the most predicted tokens a second against the one with the most measured."""
    chosen = max(candidates, key=lambda item: item.predicted)
    best = max(candidates, key=lambda item: item.measured)
    regret = 1 - chosen.measured / best.measured
    disturbed = any(item.disturbed for item in candidates)
    return Choice(load, len(candidates), chosen.deployment, best.deployment, regret, disturbed)


def choices(paths: Iterable[Path]) -> list[Choice]:
    """Choices under every load that two deployments or more were measured under."""
    return [choose(load, items) for load, items in read_candidates(paths).items() if len(items) > 1]


def mean_regret(found: Sequence[Choice]) -> float:
    """Mean share of the best throughput lost; 0 for no choices."""
    return sum(item.regret for item in found) / max(len(found), 1)


def main(words: Sequence[str] | None = None) -> None:
    """Print the choices and the mean regret."""
    parser = argparse.ArgumentParser(description="Throughput lost by the deployment that moesim ranks first.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    found = choices(given.files)
    sound = [item for item in found if not item.disturbed]
    if given.json:
        summary = {"loads": len(found), "mean_regret": mean_regret(found)}
        summary |= {"undisturbed_loads": len(sound), "undisturbed_mean_regret": mean_regret(sound)}
        print_json({"choices": [asdict(item) for item in found], "summary": summary})
        return
    rows = [asdict(item) | {"regret": f"{item.regret:.1%}"} for item in found]
    print_table("Deployments that moesim ranks first", rows)
    for name, items in (("all", found), ("undisturbed", sound)):
        print(f"mean regret {mean_regret(items):.1%} of {len(items)} loads ({name})")


if __name__ == "__main__":
    main()
