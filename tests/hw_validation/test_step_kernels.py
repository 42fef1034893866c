from __future__ import annotations

import pytest

from hw_validation.step_kernels import tabulate_kernels
from hw_validation.summaries import quantile, summarize


def test_kernels_are_summed_by_name_a_step() -> None:
    events = [("gemm", 0.0, 10.0), ("moe", 5.0, 10.0), ("gemm", 30.0, 4.0), ("copy", 31.0, 1.0)]
    table = tabulate_kernels(events, steps=2)
    assert table.rows == [("gemm", 1.0, 7.0), ("moe", 0.5, 5.0), ("copy", 0.5, 0.5)]
    assert table.values == {"kernels_per_step": 2.0, "kernel_sum_us": 12.5, "kernel_busy_us": 9.5}


def test_quantiles_are_linear_between_values() -> None:
    assert quantile([4.0, 1.0, 2.0, 3.0], 0.5) == pytest.approx(2.5)
    assert quantile([1.0], 0.9) == 1.0


def test_summary_of_nothing_is_empty() -> None:
    assert summarize("tpot", "ms", [None]) == {}
    assert summarize("tpot", "ms", [1.0, None, 3.0])["tpot_median_ms"] == 2.0
