from __future__ import annotations

import pytest

from hw_validation.step_counters import counted_points, read_ncu, split_steps, sum_step
from moesim.errors import InputError

NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","dram__bytes_read.sum","dram__bytes_write.sum","gpu__time_duration.sum"
"","","","byte","byte","ns"
"0","7","void at::<unnamed>::spin_kernel(long)","1","1","5,000"
"1","7","fused_moe_kernel","1,000","24","2000"
"2","7","gemm, big","500","0","1500"
"3","7","void at::<unnamed>::spin_kernel(long)","1","1","5000"
"4","7","gemm, big","7","0","100"
"""


def test_steps_are_told_apart_by_their_markers() -> None:
    steps = split_steps(read_ncu(NCU.splitlines()))
    assert [len(step) for step in steps] == [2, 1]
    assert sum_step(steps[0]) == {
        "kernels_per_step": 2.0,
        "dram_read_bytes": 1500.0,
        "dram_written_bytes": 24.0,
        "kernel_sum_us": 3.5,
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("==ERROR== no permission", "listed no kernels"),
        (NCU.replace("dram__bytes_write.sum", "other"), "lacks dram__bytes_write.sum"),
        (NCU.replace('"ns"', '"us"'), "units"),
    ],
)
def test_unusable_tables_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read_ncu(text.splitlines())


def test_every_counted_point_is_a_step_of_its_own() -> None:
    keys = [point.key for point in counted_points()]
    assert len(set(keys)) == len(keys) >= 5
