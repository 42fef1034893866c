"""From a recipe to parameter sets: kernels first, then steps and servers, then the errors on rows left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from calibration.errors_left_out import evidence_of
from calibration.kernel_fit import KernelFit, fit_kernels
from calibration.profile_calibration import ProfileEvidence, evidence_of_profiles, moved_only, name_profiles
from calibration.profilers import read_profile
from calibration.readers import read_runs
from calibration.recipes import MACHINE_CONSTANTS, Output, Recipe
from calibration.rejection import rejected_values
from calibration.run_fit import Observations, Progress, RunFit, fit_runs, observe, with_guesses
from calibration.runs import MeasuredRun
from calibration.sources import hash_file
from moesim.errors import InputError
from moesim.specs.catalog import get_hardware
from moesim.specs.parameters import Correlation, Evidence, Parameter, ParameterSet

_LEAST_SITE_SD = 0.25
_REPORTED_CORRELATION = 0.05


@dataclass(frozen=True, slots=True)
class Calibration:
    """Everything one recipe gave: the sets to write, and what led to them.

    `start`: constants before the runs (priors and kernels); `joint`: after them; `rejected`: reason -> values left out.
    """

    recipe: Recipe
    sets: dict[str, ParameterSet]
    start: ParameterSet
    joint: ParameterSet
    observations: Observations
    rejected: dict[str, int]
    run_fit: RunFit | None
    kernel_fit: KernelFit | None
    profiles: ProfileEvidence | None = None


def find_files(names: Sequence[str], data: Sequence[Path]) -> dict[str, Path]:
    """Files named relative to one of the data folders; `*` stands for any part of a name, `[ab]` for a or b.

    Raises:
        InputError: naming the folders in which one is missing.
    """
    found: dict[str, Path] = {}
    for name in names:
        if not set("*[") & set(name):
            found[name] = find_file(name, data)
            continue
        matches = {str(path.relative_to(folder)): path for folder in data for path in sorted(folder.glob(name))}
        if not matches:
            raise InputError(f"{name}: nothing matches under {', '.join(str(folder) for folder in data)}")
        found.update(matches)
    return found


def find_file(name: str, data: Sequence[Path]) -> Path:
    """A file named relative to one of the data folders. Raises InputError naming the folders."""
    for folder in data:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{name}: not found under {', '.join(str(folder) for folder in data)}")


def calibrate(
    recipe: Recipe,
    base: ParameterSet,
    data: Sequence[Path],
    *,
    jobs: int = -1,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Fit what the recipe says.

    Raises:
        InputError: a file is missing or bad, or holds no row of the recipe's accelerators.
    """
    kernel_files = list(find_files(recipe.kernels, data).values())
    run_files = find_files(recipe.runs, data)
    kernel_fit = fit_kernels(base, kernel_files, jobs, state, progress) if kernel_files else None
    start = kernel_fit.parameters if kernel_fit else base
    profiles = _profiles(recipe, start, data)
    start = profiles.fit.parameters if profiles and profiles.fit else start
    runs = _runs(recipe, list(run_files.values()))
    observations = observe(runs)
    run_fit = None
    joint = start
    if observations.index:
        columns = recipe.columns(run.site for run in runs)
        run_fit = fit_runs(
            start,
            observations,
            columns,
            recipe.prior_log_sd,
            start=with_guesses(start, columns, recipe.guesses),
            jobs=jobs,
            progress=progress,
            state=state,
        )
        joint = run_fit.parameters
    elif not kernel_files and profiles is None:
        raise InputError(f"calibrate: {recipe.name}: no usable row of {', '.join(recipe.accelerators)} in the runs")
    files = {**find_files(recipe.kernels, data), **run_files, **find_files(recipe.profiles, data)}
    inputs = {name: hash_file(path) for name, path in files.items()}
    evidence = evidence_of(run_fit, inputs) if run_fit else Evidence(inputs=inputs)
    done = Calibration(recipe, {}, start, joint, observations, rejected_values(runs), run_fit, kernel_fit, profiles)
    sets = {
        name: msgspec.structs.replace(output_set(done, joint, name, run_fit), evidence=evidence)
        for name in recipe.outputs
    }
    if profiles is not None:
        alone = run_fit is None and kernel_fit is None
        sets = {
            name: name_profiles(moved_only(item, base, inputs) if alone else item, profiles)
            for name, item in sets.items()
        }
    return dataclasses.replace(done, sets=sets)


def _profiles(recipe: Recipe, start: ParameterSet, data: Sequence[Path]) -> ProfileEvidence | None:
    files = find_files(recipe.profiles, data)
    if not files:
        return None
    return evidence_of_profiles(
        start, {name: read_profile(path) for name, path in files.items()}, recipe.accelerators[0]
    )


def _runs(recipe: Recipe, files: Sequence[Path]) -> list[MeasuredRun]:
    runs: list[MeasuredRun] = []
    for path in files:
        runs += read_runs(path)[0]
    wanted = set(recipe.accelerators)
    return [run for run in runs if run.engine == recipe.engine and get_hardware(run.request.hardware).name in wanted]


def output_set(done: Calibration, joint: ParameterSet, name: str, run_fit: RunFit | None) -> ParameterSet:
    """One of the recipe's sets from jointly fitted constants; its evidence is that of the full fit."""
    recipe, output = done.recipe, done.recipe.outputs[name]
    general = dict(joint.parameters)
    general.update(_machine_constants(joint, output))
    vendor = get_hardware(output.accelerators[0]).vendor
    kept = set(joint.sites) if "*" in output.sites else set(output.sites)
    sites = {site: constants for site, constants in joint.sites.items() if site in kept and _measured(constants)}
    return ParameterSet(
        name=name,
        vendor=vendor,
        engine=recipe.engine,
        engine_version=recipe.engine_version,
        calibrated=True,
        accelerators=output.accelerators,
        notes=recipe.notes,
        parameters={key: _sourced(value, recipe) for key, value in general.items()},
        sites=sites,
        kernels=joint.kernels,
        correlation=_correlation(run_fit) if run_fit else Correlation(),
        evidence=done.sets[name].evidence if name in done.sets else Evidence(),
    )


def _measured(constants: Mapping[str, Parameter]) -> bool:
    """Whether data told of a machine; one that no run was on is taken for an unknown one."""
    return any(item.moved for item in constants.values())


def _sourced(value: Parameter, recipe: Recipe) -> Parameter:
    if not value.moved:
        return value
    source = f"fitted: {', '.join((*recipe.kernels, *recipe.runs))}"
    return msgspec.structs.replace(value, source=source if len(source) < 300 else f"fitted: recipe {recipe.name}")


def _machine_constants(joint: ParameterSet, output: Output) -> Mapping[str, Parameter]:
    """Constants of a host nobody measured: the geometric mean over hosts that are not strange, and their spread."""
    chosen = joint.sites if "*" in output.sites else output.sites
    sites = [joint.sites[site] for site in chosen if site in joint.sites and site not in output.strange_hosts]
    found: dict[str, Parameter] = {}
    for name in MACHINE_CONSTANTS:
        known = [item[name] for item in sites if name in item and item[name].moved]
        if not known:
            continue
        logs = np.log([item.value for item in known])
        spread = max(float(np.std(logs)), _LEAST_SITE_SD, min(item.log_sd for item in known))
        found[name] = msgspec.structs.replace(known[0], value=float(np.exp(logs.mean())), log_sd=spread)
    return found


def _correlation(run_fit: RunFit) -> Correlation:
    """Correlations between the constants (those of sites too) that any other one moves with."""
    columns, matrix = run_fit.linear.columns, run_fit.result.correlation
    general = list(range(len(columns)))
    off = np.abs(matrix[np.ix_(general, general)] - np.eye(len(general)))
    kept = [index for index, row in zip(general, off, strict=True) if row.max(initial=0.0) > _REPORTED_CORRELATION]
    rows = tuple(tuple(round(float(value), 4) for value in matrix[index, kept]) for index in kept)
    return Correlation(names=tuple(columns[index].key for index in kept), rows=rows)
