"""Which set of constants a query gets."""

from pathlib import Path

import numpy as np
import pytest

from calibration.validation import validate_files
from moesim.specs.catalog import get_hardware
from moesim.specs.parameters import select_parameters

LLADA_ON_H100 = sorted((Path(__file__).parents[2] / "calibration/data/h100x2").glob("one-gpu-llada-*.json.gz"))


@pytest.mark.parametrize(
    ("hardware", "engine", "name"),
    [
        ("h200", "llada", "h200-llada"),
        ("h100", "llada", "h200-llada"),
        ("a100-80gb", "llada", "a100-40gb-llada"),
        ("mi325x", "llada", "mi300x-llada"),
        ("h100", "sglang", "h100-vllm"),
        ("mi325x", "vllm", "prior-amd"),
    ],
)
def test_a_program_without_a_set_of_its_own_takes_that_of_the_nearest_accelerator(hardware, engine, name):
    assert select_parameters(get_hardware(hardware), engine).name == name


def test_denoising_on_an_accelerator_without_a_set_is_met_by_the_nearest_one():
    """In graphs, where the GPU decides; the interval is that of another accelerator."""
    table = validate_files(LLADA_ON_H100, jobs=1)
    assert set(table.parameter_sets) == {"h200-llada"}
    rows = [row for row in table.rows if row.metric == "output_tok_per_s"]
    errors = np.abs([row.relative_error for row in rows])
    assert len(rows) > 20
    assert np.median(errors) < 0.08
    assert np.mean([row.predicted_low <= row.measured <= row.predicted_high for row in rows]) > 0.8
