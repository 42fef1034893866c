"""Fits with parts of the data left out in turn, written as a folder of folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from calibration.errors_left_out import BoolArray, assign_folds, free_of, held_rows, unit_of
from calibration.folds import FoldKind, write_folds
from calibration.kernel_fit import kernel_folds
from calibration.pipeline import Calibration, find_files, output_set
from calibration.run_fit import Linearisation, Progress, refit_without
from moesim.specs.catalog import get_model
from moesim.specs.parameters import Evidence, ParameterSet

_ROUNDS = 2
SetFoldsFound = tuple[Mapping[str, int], Mapping[int, ParameterSet]]


def cross_validate(
    fits: Sequence[Calibration],
    made: Mapping[str, ParameterSet],
    kind: FoldKind,
    data: Sequence[Path],
    folder: Path,
    jobs: int,
    state: Path | None,
    progress: Progress,
) -> None:
    """Refit every recipe without each fold, and write the constants and which rows each fold held.

    A fold begins where the full fit's linear form puts it without its rows, and then goes on as the full fit did, for
    at most two rounds of simulations of the rows that it keeps.

    `configuration` and `series` deal the units out to five folds; `model` leaves one model out at a time; `gpu`
    takes the constants that the other accelerators' data give.
    """
    sets: dict[str, SetFoldsFound] = {}
    kernels: dict[str, dict[str, list[dict[str, float]]]] = {}
    for done in fits:
        if done.run_fit is not None:
            sets.update(_transferred(done, made) if kind == "gpu" else _refitted(done, kind, jobs, state, progress))
        if kind != "gpu":
            for path in find_files(done.recipe.kernels, data).values():
                kernels.update(kernel_folds(path, jobs, state, progress))
    write_folds(folder, kind, sets, kernels)


def _transferred(done: Calibration, made: Mapping[str, ParameterSet]) -> dict[str, SetFoldsFound]:
    """Sets without any row of their accelerators: the constants of the set they are transferred from."""
    recipe = done.recipe
    source = made.get(recipe.transfer_from)
    if source is None or done.run_fit is None:
        return {}
    general = msgspec.structs.replace(source, sites={})
    units = {unit_of(run, "gpu"): 0 for run in done.observations.runs}
    return {
        name: (units, {0: msgspec.structs.replace(output_set(done, general, name, None), sites={})})
        for name in recipe.outputs
    }


def _refitted(
    done: Calibration, kind: FoldKind, jobs: int, state: Path | None, progress: Progress
) -> dict[str, SetFoldsFound]:
    run_fit = done.run_fit
    assert run_fit is not None
    linear, free = run_fit.linear, free_of(run_fit)
    folds = held_rows(linear.observations, kind)
    by_fold: dict[int, ParameterSet] = {}
    for number, (fold, held) in enumerate(folds.items()):
        progress(number, len(folds), f"{done.recipe.name} without {kind} {fold}")
        by_fold[fold] = refit_without(run_fit, free, held, jobs, _ROUNDS, state)
    units = assign_folds(linear.observations.runs, kind)
    found_sets: dict[str, SetFoldsFound] = {}
    for name in done.recipe.outputs:
        known = done.sets[name].evidence
        found_sets[name] = (
            units,
            {
                fold: msgspec.structs.replace(
                    output_set(done, parameters, name, run_fit), evidence=_without(known, linear, folds[fold], kind)
                )
                for fold, parameters in by_fold.items()
            },
        )
    return found_sets


def _without(known: Evidence, linear: Linearisation, held: BoolArray, kind: FoldKind) -> Evidence:
    """The evidence as a query about the held rows meets it: a model that was left out is a strange one."""
    if kind != "model":
        return known
    runs = linear.observations.runs
    rows = np.flatnonzero(held).tolist()
    strange = {get_model(runs[linear.observations.index[row][0]].request.model).name for row in rows}
    return msgspec.structs.replace(known, models=tuple(name for name in known.models if name not in strange))
