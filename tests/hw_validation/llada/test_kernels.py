"""The Triton kernels against the PyTorch operators, in Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


def test_kernels_equal_the_torch_operators():
    """The interpreter must be chosen before Triton is imported, hence a process of its own."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.hw_validation.llada.kernel_checks"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    names = ["route", "norm", "sort", "rotate", "swiglu", "gated", "combine", "experts", "model", "tuning"]
    assert result.stdout.split() == names
