"""What a kernel does, from its name: the classes that profiles of every engine and vendor share."""

from __future__ import annotations

import re

COLLECTIVE, EXPERTS, ATTENTION, PRODUCT, COPY, ELEMENTWISE, OTHER = (
    "collective",
    "experts",
    "attention",
    "product",
    "copy",
    "elementwise",
    "other",
)
_CLASSES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (COLLECTIVE, re.compile(r"nccl|rccl|all_?reduce|allgather|reduce_?scatter|cross_device_reduce|deep_?ep", re.I)),
    (EXPERTS, re.compile(r"fused_moe|matmul_ogs|group(ed)?_?gemm|moe", re.I)),
    (ATTENTION, re.compile(r"flash|fmha|attn_fwd|attention|mha_|mla_", re.I)),
    (PRODUCT, re.compile(r"gemm|gemv|Cijk_|nvjet|matmul|wvSplitK|cublas", re.I)),
    (COPY, re.compile(r"copy|fillBuffer|memcpy|CatArray", re.I)),
    (
        ELEMENTWISE,
        re.compile(
            r"elementwise|triton_(poi|red|per)|rms_?norm|layer_?norm|act_and_mul|silu|rotary|reduce_kernel|addition"
            r"|softmax|add_|index|quant",
            re.I,
        ),
    ),
)


def class_of(name: str) -> str:
    """The first class whose words the name holds; "other" for none."""
    return next((kind for kind, pattern in _CLASSES if pattern.search(name)), OTHER)
