"""Profilers' files among the inputs of a calibration: whose GPU they are of, what they move, and what a page shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from calibration.kernel_classes import class_of
from calibration.profile_residuals import Observation, ProfileFit, fit_profiles, observe_profile
from calibration.profilers import read_profile
from calibration.profilers.summary import list_kernels
from calibration.profilers.tables import Profile
from moesim.errors import InputError
from moesim.specs.catalog import get_hardware
from moesim.specs.hardware import Accelerator
from moesim.specs.parameters import ParameterSet

_SHOWN = 12
_DEVICES: tuple[tuple[str, str], ...] = (
    (r"GB200", "gb200"),
    (r"B300", "b300"),
    (r"B200", "b200"),
    (r"H200", "h200"),
    (r"H100", "h100"),
    (r"A100.*40 ?GB", "a100-40gb"),
    (r"A100.*80 ?GB", "a100-80gb"),
    (r"MI300X", "mi300x"),
    (r"MI325X", "mi325x"),
    (r"MI355X", "mi355x"),
)


@dataclass(frozen=True, slots=True)
class ProfileEvidence:
    """Profiles as a calibration used them; `fit` is None where none of them tells a constant."""

    profiles: Mapping[str, Profile]
    accelerator: Accelerator
    fit: ProfileFit | None


def split_profiles(names: Sequence[str]) -> tuple[dict[str, Profile], list[str]]:
    """(profiles by file name, names of the files that are none).

    Raises:
        InputError: a SQLite file of no known profiler.
    """
    profiles: dict[str, Profile] = {}
    others: list[str] = []
    for name in names:
        found = _profile(Path(name))
        if found is None:
            others.append(name)
        else:
            profiles[name] = found
    return profiles, others


def _profile(path: Path) -> Profile | None:
    if {".yaml", ".yml", ".parquet", ".jsonl"} & set(path.suffixes):
        return None
    try:
        return read_profile(path)
    except InputError as error:
        if "no known" in str(error) or "no profile" in str(error) or not path.is_file():
            return None
        raise


def accelerators_of(profiles: Mapping[str, Profile]) -> list[str]:
    """The accelerators that the files' devices are, as far as they name them."""
    names = [device.name for profile in profiles.values() for device in profile.devices]
    found = {known for name in names for pattern, known in _DEVICES if re.search(pattern, name, re.IGNORECASE)}
    return sorted(found)


def evidence_of_profiles(base: ParameterSet, profiles: Mapping[str, Profile], accelerator: str) -> ProfileEvidence:
    """Fit what the profiles tell about the base set's constants."""
    hardware = get_hardware(accelerator)
    observations: list[Observation] = []
    for profile in profiles.values():
        observations += observe_profile(profile, hardware)
    fit = fit_profiles(base, observations, _names(profiles)) if observations else None
    return ProfileEvidence(profiles, hardware, fit)


def moved_only(item: ParameterSet, base: ParameterSet, inputs: Mapping[str, str]) -> ParameterSet:
    """A set that only profiles moved: what the base set knows of its errors still holds, and no more is claimed."""
    evidence = msgspec.structs.replace(base.evidence, inputs={**base.evidence.inputs, **inputs})
    correlation = base.correlation if base.correlation.names else item.correlation
    return msgspec.structs.replace(
        item, calibrated=base.calibrated, sites=base.sites, evidence=evidence, correlation=correlation
    )


def name_profiles(item: ParameterSet, evidence: ProfileEvidence) -> ParameterSet:
    """A finished set whose constants name the profiles that moved them."""
    constants = dict(item.parameters)
    source = _names(evidence.profiles)
    for estimate in evidence.fit.result.estimates if evidence.fit else ():
        known = constants[estimate.name]
        if source not in known.source:
            constants[estimate.name] = msgspec.structs.replace(known, source=f"{known.source}; {source}"[-300:])
    return msgspec.structs.replace(item, parameters=constants)


def _names(profiles: Mapping[str, Profile]) -> str:
    return ", ".join(Path(name).name for name in profiles)


def profile_rows(evidence: ProfileEvidence | None) -> list[dict[str, Any]]:
    """The kernels that took longest in each file, with achieved bandwidth and occupancy where counters say."""
    rows: list[dict[str, Any]] = []
    for name, profile in evidence.profiles.items() if evidence else ():
        peak = evidence.accelerator.hbm_bandwidth_bytes_per_s if evidence else 0.0
        for row in list_kernels(profile)[:_SHOWN]:
            share = row.peak_share or (row.bytes_per_s / peak if row.bytes_per_s else None)
            rows.append(
                {
                    "file": Path(name).name,
                    "kernel": row.kernel[:90],
                    "kind": class_of(row.kernel),
                    "launches": row.launches,
                    "total_ms": 1e3 * (row.total_s or 0.0),
                    "median_us": 1e6 * (row.median_s or 0.0),
                    "peak_share": share,
                    "occupancy": row.occupancy,
                }
            )
    return rows


def profile_observations(evidence: ProfileEvidence | None) -> list[dict[str, Any]]:
    """What the profiles told: each time used as a residual, and what the moved constants make of it."""
    if evidence is None or evidence.fit is None:
        return []
    pairs = zip(evidence.fit.observations, evidence.fit.result.log_errors.tolist(), strict=True)
    return [
        {
            "what": item.what,
            "kernel": item.kernel[:90],
            "count": item.count,
            "measured_us": 1e6 * item.measured_s,
            "predicted_us": 1e6 * item.measured_s * math.exp(error),
            "constants": ", ".join(term.constant for term in item.terms),
        }
        for item, error in pairs
    ]
