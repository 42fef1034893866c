"""Number formats of weights, activations and the KV cache: bytes per element and the matrix rate they use."""

from __future__ import annotations

import msgspec

from moesim.errors import InputError, nearest


class Dtype(msgspec.Struct, frozen=True):
    """A number format as stored in memory.

    `bytes_per_element` includes the block scales stored beside the values. `compute` is the format in which
    the matrix units multiply when the accelerator supports it ("bf16", "fp8", "fp4"); weight-only formats
    (`int4`) are expanded to bf16 first.
    """

    name: str
    bytes_per_element: float
    compute: str
    source: str


_FORMATS = (
    Dtype("float32", 4.0, "bf16", "IEEE 754"),
    Dtype("bfloat16", 2.0, "bf16", "16-bit brain float"),
    Dtype("float16", 2.0, "bf16", "IEEE 754 half"),
    Dtype("fp8", 1.0, "fp8", "OCP FP8 E4M3, one scale per tensor or channel (not counted)"),
    Dtype("fp8_block", 1.0 + 4.0 / (128 * 128), "fp8", "DeepSeek-V3 config.json: fp32 scale per 128x128 block"),
    Dtype("int4", 0.5 + 2.0 / 32, "bf16", "compressed-tensors W4A16 with bf16 scale per group of 32 (Kimi-K2.5)"),
    Dtype("mxfp4", 0.5 + 1.0 / 32, "fp4", "OCP MX: one 8-bit scale per 32 values"),
    Dtype("nvfp4", 0.5 + 1.0 / 16, "fp4", "NVFP4: one fp8 scale per 16 values"),
)
DTYPES: dict[str, Dtype] = {dtype.name: dtype for dtype in _FORMATS}
_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "float": "float32", "fp8_e4m3": "fp8"}


def get_dtype(name: str, where: str = "dtype") -> Dtype:
    """Look a number format up by name or alias; raises InputError naming `where` for an unknown one."""
    key = _ALIASES.get(name, name)
    if key not in DTYPES:
        raise InputError(f"{where}: unknown number format {name!r}; {nearest(name, [*DTYPES, *_ALIASES])}")
    return DTYPES[key]
