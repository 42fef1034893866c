"""What `moesim calibrate` does: recipes from files or by name, run in order, resumed where they are done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.cross_validation import cross_validate
from calibration.folds import FoldKind
from calibration.kernels.tables import read_table
from calibration.parameter_choice import named_parameters
from calibration.parameter_file import write_file, write_parameters
from calibration.pipeline import Calibration, calibrate
from calibration.profile_calibration import accelerators_of, split_profiles
from calibration.readers import read_runs
from calibration.recipes import MACHINE_CONSTANTS, Output, Recipe, in_order, load_recipe, shipped_recipes
from calibration.run_fit import Progress
from calibration.set_report import SetReport
from moesim.errors import InputError, nearest
from moesim.specs.catalog import get_hardware
from moesim.specs.parameters import PARAMETER_NAMES, ParameterSet, select_parameters

_KINDS: tuple[FoldKind, ...] = ("configuration", "model", "gpu", "series")
_SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class CalibrateRequest:
    """The words of `moesim calibrate`."""

    files: tuple[str, ...]
    output: str | None
    base: str | None
    recipes: tuple[str, ...]
    data: tuple[str, ...]
    cross_validate: str | None
    report: str | None
    bootstrap: int
    state: str | None
    jobs: int


def run_calibrate(request: CalibrateRequest, progress: Progress) -> list[SetReport]:
    """Fit, and write sets, folds and reports. Raises InputError for anything a user can mend."""
    _check(request)
    data = [Path(folder) for folder in request.data] or [Path()]
    recipes = _recipes(request)
    if request.report and Path(request.report).suffix in {".html", ".htm"} and len(recipes) > 1:
        raise InputError(f"report: {request.report} is one file for {len(recipes)} recipes; name a folder")
    state = Path(request.state) if request.state else None
    made: dict[str, ParameterSet] = {}
    reports: list[SetReport] = []
    fits: list[Calibration] = []
    for recipe in recipes:
        base = made.get(recipe.base) or named_parameters(recipe.base)
        done = calibrate(recipe, base, data, jobs=request.jobs, state=state, progress=progress)
        made.update(done.sets)
        fits.append(done)
        bootstrap = _bootstrap(request, done, progress)
        reports += [SetReport.of(item, done, bootstrap) for item in done.sets.values()]
        if not request.cross_validate:
            _write(request, done, bootstrap)
    if request.cross_validate:
        kind = _KINDS[_KINDS.index(request.cross_validate)]
        cross_validate(fits, made, kind, data, Path(str(request.output)), request.jobs, state, progress)
    return reports


def _bootstrap(request: CalibrateRequest, done: Calibration, progress: Progress) -> dict[str, float]:
    """Standard errors of resampled fits, where they were asked for and runs were fitted."""
    if not request.bootstrap or done.run_fit is None:
        return {}
    from calibration.bootstrap import bootstrap_errors

    return bootstrap_errors(done.run_fit, request.bootstrap, np.random.default_rng(0xB007), progress)


def _check(request: CalibrateRequest) -> None:
    if bool(request.files) == bool(request.recipes):
        raise InputError("calibrate: give files of measured rows, or --recipe (not both)")
    if request.cross_validate and request.cross_validate not in _KINDS:
        raise InputError(
            f"cross-validate: unknown {request.cross_validate!r}; {nearest(request.cross_validate, _KINDS)}"
        )
    if request.bootstrap < 0 or request.bootstrap == 1:
        raise InputError(f"bootstrap: {request.bootstrap} is out of range, must be 0 (none) or at least 2")
    if request.output is None:
        raise InputError("output: -o is missing; name the YAML file (or the folder) to write")


def _recipes(request: CalibrateRequest) -> list[Recipe]:
    if request.files:
        return [recipe_of_files(request)]
    named = [shipped_recipes() if name == _SHIPPED else [load_recipe(Path(name))] for name in request.recipes]
    return in_order([recipe for group in named for recipe in group])


def recipe_of_files(request: CalibrateRequest) -> Recipe:
    """One fit of everything that a user's files hold; they must be of one accelerator and engine.

    Raises:
        InputError: files of several accelerators, or of none.
    """
    tables = [name for name in request.files if name.endswith(".parquet") and _is_table(Path(name))]
    profiles, runs = split_profiles([name for name in request.files if name not in tables])
    found = [run for name in runs for run in read_runs(Path(name))[0]]
    named = {get_hardware(run.request.hardware).name for run in found} | set(accelerators_of(profiles))
    accelerators = sorted(named | {read_table(Path(name)).accelerator.name for name in tables})
    if not accelerators and request.base:
        accelerators = list(named_parameters(request.base).accelerators[:1])
    engines = sorted({run.engine for run in found}) or ["vllm"]
    if len(accelerators) != 1 or len(engines) != 1:
        raise InputError(
            f"calibrate: the files hold {', '.join(accelerators) or 'no accelerator'} under {', '.join(engines)}; "
            "give files of one accelerator and engine, a --recipe, or the --base set of the accelerator of a trace "
            "that does not name it"
        )
    base = request.base or select_parameters(get_hardware(accelerators[0]), engines[0]).name
    known = named_parameters(base).parameters
    name = Path(str(request.output)).stem
    sites = tuple(sorted({run.site for run in found if run.site}))
    return Recipe(
        name=name,
        base=base,
        engine=engines[0],
        accelerators=tuple(accelerators),
        kernels=tuple(tables),
        runs=tuple(runs),
        profiles=tuple(profiles),
        free=tuple(item for item in PARAMETER_NAMES if item != "model_error" and known[item].log_sd > 0),
        sites=dict.fromkeys(sites, MACHINE_CONSTANTS),
        outputs={name: Output(accelerators=tuple(accelerators), sites=sites)},
    )


def _is_table(path: Path) -> bool:
    return path.stem.endswith("_perf")


def _write(request: CalibrateRequest, done: Calibration, bootstrap: Mapping[str, float]) -> None:
    target = Path(str(request.output))
    single = target.suffix in {".yaml", ".yml"}
    if single and len(done.sets) > 1:
        raise InputError(f"output: {target} is one file, the recipe makes {len(done.sets)} sets; name a folder")
    for name, parameters in done.sets.items():
        path = target if single else target / f"{name}.yaml"
        write_parameters(parameters, path)
        rows = sorted({done.observations.runs[run].id for run, _ in done.observations.index})
        write_file(path.parent / "rows" / f"{name}.txt", "\n".join(rows) + "\n")
    if request.report:
        from calibration.report import write_report

        write_report(done, Path(request.report), bootstrap, _command(request))


def _command(request: CalibrateRequest) -> str:
    """The command line again, for the page that it makes."""
    words = ["moesim calibrate", *request.files]
    words += [f"--recipe {name}" for name in request.recipes] + [f"--data {name}" for name in request.data]
    for name in ("output", "base", "report", "state", "bootstrap"):
        value = getattr(request, name)
        words += [f"--{name} {value}"] if value else []
    return " ".join(words)
