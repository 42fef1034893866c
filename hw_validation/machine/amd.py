"""AMD GPUs through amd-smi's JSON, or rocm-smi's where amd-smi is absent.

amd-smi's documents changed over ROCm 6 and 7 (a list, or an object with `gpu_data`; some names got longer): both
forms are read, and a figure that neither holds is None.
"""

from __future__ import annotations

from typing import Any

from hw_validation.machine.gpus import Gpu, GpuSample, memory_bytes, number, scaled
from hw_validation.machine.tools import run_json, run_tool

_ROCM_WHAT = ("--showproductname", "--showdriverversion", "--showmeminfo", "vram", "--showmaxpower", "--showbus")
_ROCM_NOW = ("--showuse", "--showmemuse", "--showmeminfo", "vram", "--showpower", "--showclocks", "--showtemp")


def list_gpus() -> list[Gpu]:
    """All GPUs that amd-smi or rocm-smi shows; empty without either."""
    entries = _entries(run_json(["amd-smi", "static", "--json"]))
    if entries:
        return [_describe(place, entry) for place, entry in enumerate(entries)]
    cards, driver = _cards(run_json(["rocm-smi", *_ROCM_WHAT, "--json"]))
    return [_describe_card(place, card, driver) for place, card in enumerate(cards)]


def topology() -> str:
    """The links between GPUs, as amd-smi or rocm-smi prints them."""
    return run_tool(["amd-smi", "topology"]) or run_tool(["rocm-smi", "--showtopo"])


def sample() -> list[GpuSample]:
    """One sample of all GPUs; empty without amd-smi and rocm-smi."""
    entries = _entries(run_json(["amd-smi", "metric", "--json"]))
    if entries:
        return [_sample(place, entry) for place, entry in enumerate(entries)]
    cards, _ = _cards(run_json(["rocm-smi", *_ROCM_NOW, "--json"]))
    return [_sample_card(place, card) for place, card in enumerate(cards)]


def _entries(document: Any) -> list[dict[str, Any]]:
    if isinstance(document, dict):
        document = document.get("gpu_data", [document] if "gpu" in document else [])
    return [entry for entry in document or [] if isinstance(entry, dict)]


def _get(entry: Any, *names: str) -> Any:
    """The first of the dotted `names` that the entry holds."""
    for name in names:
        value = entry
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value not in (None, "N/A"):
            return value
    return None


def _describe(place: int, entry: dict[str, Any]) -> Gpu:
    return Gpu(
        index=int(number(entry.get("gpu")) or place),
        name=str(_get(entry, "asic.market_name", "board.product_name") or "unknown"),
        vendor="amd",
        driver=str(_get(entry, "driver.version", "driver.driver_version") or "unknown"),
        memory_bytes=memory_bytes(_get(entry, "vram.size", "vram.vram_size")),
        power_limit_w=number(_get(entry, "limit.socket_power", "limit.max_power", "limit.ppt0.socket_power_limit")),
        uuid=str(_get(entry, "asic.asic_serial") or ""),
        pci_bus=str(_get(entry, "bus.bdf") or ""),
    )


def _sample(place: int, entry: dict[str, Any]) -> GpuSample:
    return GpuSample(
        index=int(number(entry.get("gpu")) or place),
        busy=scaled(_get(entry, "usage.gfx_activity"), 0.01),
        memory_busy=scaled(_get(entry, "usage.umc_activity"), 0.01),
        memory_used_bytes=memory_bytes(_get(entry, "mem_usage.used_vram", "vram_usage.vram_used")),
        power_w=number(_get(entry, "power.socket_power", "power.current_socket_power")),
        sm_clock_mhz=number(_get(entry, "clock.gfx_0.clk", "clock.gfx.clk")),
        temperature_c=number(_get(entry, "temperature.hotspot")),
    )


def _cards(document: Any) -> tuple[list[dict[str, Any]], str]:
    """rocm-smi's cards in order, and the driver's version."""
    if not isinstance(document, dict):
        return [], "unknown"
    names = sorted((name for name in document if name.startswith("card")), key=lambda name: int(name[4:] or 0))
    system = document.get("system", {})
    return [document[name] for name in names], str(system.get("Driver version", "unknown"))


def _describe_card(index: int, card: dict[str, Any], driver: str) -> Gpu:
    return Gpu(
        index=index,
        name=str(_first(card, "Card Series", "Card series", "Card Model", "Card model") or "unknown"),
        vendor="amd",
        driver=driver,
        memory_bytes=number(_first(card, "VRAM Total Memory (B)")),
        power_limit_w=number(_first(card, "Max Graphics Package Power (W)")),
        pci_bus=str(_first(card, "PCI Bus") or ""),
    )


def _sample_card(index: int, card: dict[str, Any]) -> GpuSample:
    power = _first(card, "Current Socket Graphics Package Power (W)", "Average Graphics Package Power (W)")
    return GpuSample(
        index=index,
        busy=scaled(_first(card, "GPU use (%)"), 0.01),
        memory_busy=scaled(_first(card, "GPU Memory Read/Write Activity (%)"), 0.01),
        memory_used_bytes=number(_first(card, "VRAM Total Used Memory (B)")),
        power_w=number(power),
        sm_clock_mhz=number(_first(card, "sclk clock speed:")),
        temperature_c=number(_first(card, "Temperature (Sensor junction) (C)", "Temperature (Sensor edge) (C)")),
    )


def _first(card: dict[str, Any], *names: str) -> Any:
    return next((card[name] for name in names if name in card), None)
