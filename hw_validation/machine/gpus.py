"""GPUs as records: what they are, and one sample of what they do. Units in the names; None where a tool is silent."""

from __future__ import annotations

import math
import re

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as its vendor's tool describes it."""

    index: int
    name: str
    vendor: str
    driver: str
    memory_bytes: float | None = None
    power_limit_w: float | None = None
    max_sm_clock_mhz: float | None = None
    max_memory_clock_mhz: float | None = None
    uuid: str = ""
    pci_bus: str = ""


class GpuSample(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU at one moment. `busy` and `memory_busy` are shares of the tool's last sampling period, 0 to 1."""

    index: int
    busy: float | None
    memory_busy: float | None
    memory_used_bytes: float | None
    power_w: float | None
    sm_clock_mhz: float | None
    temperature_c: float | None


def is_planned(name: str, hardware: str) -> bool:
    """Whether a GPU's name is that of the planned hardware: each part of "a100-80gb" stands in it as a word.

    >>> is_planned("NVIDIA H200", "h200"), is_planned("NVIDIA GB200", "b200")
    (True, False)
    """
    parts = hardware.lower().split("-")
    return all(re.search(rf"\b{re.escape(part)}\b", name.lower()) for part in parts)


def number(value: object) -> float | None:
    """A tool's figure as a finite number: plain, as text with a unit ("132Mhz"), or {"value": ..., "unit": ...}."""
    if isinstance(value, dict):
        return number(value.get("value"))
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    text = str(value).strip().strip("()")
    digits = ""
    for letter in text:
        if not (letter.isdigit() or letter in ".-"):
            break
        digits += letter
    try:
        return float(digits)
    except ValueError:
        return None


def scaled(value: object, factor: float) -> float | None:
    """`number` times a factor; None where the product is no finite number."""
    found = number(value)
    return None if found is None or not math.isfinite(found * factor) else found * factor


_UNIT_BYTES = {"B": 1.0, "KB": 2.0**10, "MB": 2.0**20, "GB": 2.0**30, "MIB": 2.0**20, "GIB": 2.0**30}


def memory_bytes(value: object) -> float | None:
    """A size with its unit ({"value": 196592, "unit": "MB"}) in bytes; AMD's tools count in powers of two."""
    unit = value.get("unit", "MB") if isinstance(value, dict) else "MB"
    return scaled(value, _UNIT_BYTES.get(str(unit).upper(), 2.0**20))
