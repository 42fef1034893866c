from __future__ import annotations

import json
import math
import os
import sys
import time
import types
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hw_validation.machine import amd, nvidia
from hw_validation.machine.gpus import GpuSample, is_planned, memory_bytes, number
from hw_validation.machine.report import machine_report
from hw_validation.machine.sampler import GpuSampler, choose_reader
from hw_validation.machine.tools import PURPOSES
from moesim.specs.catalog import list_hardware

STATIC = {
    "gpu": 0,
    "asic": {"market_name": "AMD Instinct MI300X", "asic_serial": "0x12"},
    "bus": {"bdf": "0000:41:00.0"},
    "driver": {"version": "6.10.5"},
    "vram": {"size": {"value": 196592, "unit": "MB"}},
    "limit": {"max_power": {"value": 750, "unit": "W"}},
}
METRIC = {
    "gpu": 0,
    "usage": {"gfx_activity": {"value": 93, "unit": "%"}, "umc_activity": {"value": 41, "unit": "%"}},
    "power": {"socket_power": {"value": 612, "unit": "W"}},
    "clock": {"gfx_0": {"clk": {"value": 2100, "unit": "MHz"}}},
    "mem_usage": {"used_vram": {"value": 1024, "unit": "MB"}},
    "temperature": {"hotspot": {"value": 71, "unit": "C"}},
}
ROCM = {
    "card1": {"Card Series": "AMD Instinct MI300X", "VRAM Total Memory (B)": "206141652992"},
    "card0": {
        "Card Series": "AMD Instinct MI300X",
        "VRAM Total Memory (B)": "206141652992",
        "VRAM Total Used Memory (B)": "1048576",
        "GPU use (%)": "87",
        "Current Socket Graphics Package Power (W)": "431.0",
        "sclk clock speed:": "(132Mhz)",
        "Temperature (Sensor junction) (C)": "44.0",
    },
    "system": {"Driver version": "6.8.5"},
}


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin")
    return tmp_path


def install(folder: Path, name: str, **answers: str) -> None:
    """A tool that prints the answer whose key is among its arguments."""
    cases = "\n".join(f"  *{word}*) cat <<'END'\n{text}\nEND\n  ;;" for word, text in answers.items())
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}\n  *) exit 1 ;;\nesac\n')
    path.chmod(0o755)


@pytest.mark.parametrize("wrap", [lambda entry: [entry], lambda entry: {"gpu_data": [entry]}, lambda entry: entry])
def test_amd_smi_in_each_of_its_forms(tools: Path, wrap: object) -> None:
    assert callable(wrap)
    install(tools, "amd-smi", static=json.dumps(wrap(STATIC)), metric="WARNING: x\n" + json.dumps(wrap(METRIC)))
    (gpu,) = amd.list_gpus()
    assert (gpu.name, gpu.driver, gpu.power_limit_w) == ("AMD Instinct MI300X", "6.10.5", 750)
    assert gpu.memory_bytes == 196592 * 2**20
    (sample,) = amd.sample()
    assert sample == GpuSample(
        index=0,
        busy=pytest.approx(0.93),  # type: ignore[arg-type]
        memory_busy=pytest.approx(0.41),  # type: ignore[arg-type]
        memory_used_bytes=2.0**30,
        power_w=612,
        sm_clock_mhz=2100,
        temperature_c=71,
    )


def test_longer_names_of_newer_amd_smi(tools: Path) -> None:
    newer = STATIC | {"driver": {"driver_version": "7.0"}, "vram": {"vram_size": {"value": 192, "unit": "GB"}}}
    install(tools, "amd-smi", static=json.dumps({"gpu_data": [newer]}))
    (gpu,) = amd.list_gpus()
    assert (gpu.driver, gpu.memory_bytes) == ("7.0", 192 * 2**30)


def test_rocm_smi_where_amd_smi_is_absent(tools: Path) -> None:
    install(tools, "rocm-smi", showproductname=json.dumps(ROCM), showuse=json.dumps(ROCM))
    first, second = amd.list_gpus()
    assert (first.index, second.index) == (0, 1)
    assert first.driver == "6.8.5"
    assert first.memory_bytes == 206141652992
    sample = amd.sample()[0]
    assert (sample.power_w, sample.sm_clock_mhz, sample.memory_used_bytes) == (431, 132, 2**20)
    assert sample.busy == pytest.approx(0.87)


def test_nvidia_smi_with_figures_it_does_not_know(tools: Path) -> None:
    install(
        tools,
        "nvidia-smi",
        driver_version="0, NVIDIA H200, 570.86, 143771, [N/A], 1980, 3201, GPU-1, 00000000:19:00.0",
        utilization="0, 99, 47, 2048, 655.10, 1755, 61",
    )
    (gpu,) = nvidia.list_gpus()
    assert (gpu.name, gpu.power_limit_w, gpu.memory_bytes) == ("NVIDIA H200", None, 143771 * 2**20)
    (sample,) = nvidia.sample_with_smi()
    assert (sample.busy, sample.power_w, sample.memory_used_bytes) == (0.99, 655.1, 2**31)


@pytest.mark.parametrize("text", ["", "No devices were found", "{", '[{"gpu": 0', "[]", '{"card0": 3}'])
def test_tools_that_print_nonsense_show_no_gpu(tools: Path, text: str) -> None:
    install(tools, "nvidia-smi", driver_version=text)
    install(tools, "amd-smi", static=text)
    assert nvidia.list_gpus() == []
    assert amd.list_gpus() == []


def test_report_names_what_is_missing_and_hides_secrets(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hidden")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    report = machine_report()
    missing = " ".join(report["missing"])
    assert {name for name in PURPOSES if f"{name}: not found" in missing} >= {
        "nvidia-smi",
        "amd-smi",
        "ncu",
        "rocprofv3",
    }
    assert report["gpus"] == []
    assert report["variables"]["NCCL_DEBUG"] == "INFO"
    assert "hidden" not in json.dumps(report)


def test_nvml_is_preferred_and_survives_what_it_cannot_tell(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def refuse(*_: object) -> None:
        raise NVMLError

    module = types.ModuleType("pynvml")
    busy, memory = types.SimpleNamespace(gpu=50, memory=20), types.SimpleNamespace(used=4096)
    functions = {
        "NVMLError": NVMLError,
        "NVML_CLOCK_SM": 1,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda place: place,
        "nvmlDeviceGetUtilizationRates": lambda _: busy,
        "nvmlDeviceGetMemoryInfo": lambda _: memory,
        "nvmlDeviceGetPowerUsage": lambda _: 700_000,
        "nvmlDeviceGetClockInfo": refuse,
        "nvmlDeviceGetTemperature": lambda *_: 60,
    }
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    name, reader = choose_reader()
    assert name == "nvml"
    assert reader is not None
    assert [sample.index for sample in reader()] == [0, 1]
    assert (reader()[0].power_w, reader()[0].busy, reader()[0].sm_clock_mhz) == (700, 0.5, None)


def test_sampler_covers_the_time_of_the_block() -> None:
    def read() -> list[GpuSample]:
        word = dict.fromkeys(GpuSample.__struct_fields__, 1.0) | {"index": 0, "power_w": 500.0}
        return [GpuSample(**word)]

    with GpuSampler(read, period_s=0.02) as sampler:
        time.sleep(0.3)
    table = sampler.table()
    assert table["t_s"][0] < 0.1
    assert table["t_s"][-1] > 0.2  # type: ignore[operator]
    assert len({len(column) for column in table.values()}) == 1
    assert sampler.values()["gpu_power_mean_w"] == pytest.approx(500)


def test_without_a_gpu_nothing_is_sampled(tools: Path) -> None:
    name, reader = choose_reader()
    assert (name, reader) == ("none", None)
    with GpuSampler(reader) as sampler:
        pass
    assert sampler.values() == {}


@pytest.mark.parametrize(
    ("name", "hardware"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA GB200", "gb200"),
    ],
)
def test_names_of_drivers_are_those_of_one_hardware(name: str, hardware: str) -> None:
    assert [item for item in list_hardware() if is_planned(name, item)] == [hardware]


@example(1e302)
@given(st.one_of(st.none(), st.text(max_size=20), st.floats(), st.booleans(), st.lists(st.integers(), max_size=2)))
def test_any_answer_of_a_tool_is_a_number_or_none(value: object) -> None:
    for found in (number(value), number({"value": value, "unit": "W"}), memory_bytes(value)):
        assert found is None or math.isfinite(found)


@given(st.integers(0, 10**6))
def test_units_and_brackets_do_not_change_a_number(value: int) -> None:
    assert {number(text) for text in (value, f"{value}Mhz", f"({value}Mhz)", f"{value} %", {"value": value})} == {value}
