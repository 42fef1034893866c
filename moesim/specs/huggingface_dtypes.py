"""The number formats that a Hugging Face config.json says its checkpoint holds."""

from __future__ import annotations

from moesim.specs.dtypes import get_dtype
from moesim.specs.huggingface_config import Config
from moesim.specs.model import WeightDtypes


def dtypes_of(config: Config) -> WeightDtypes:
    """Number formats of the checkpoint: torch_dtype, with quantization_config on top."""
    plain = get_dtype(config.text("torch_dtype", "dtype", default="bfloat16"), f"{config.where}: torch_dtype").name
    if not config.has("quantization_config"):
        return WeightDtypes(attention=plain, experts=plain, dense=plain, embedding=plain)
    quantization = config.section("quantization_config")
    method = quantization.text("quant_method")
    if method == "fp8":
        packed = "fp8_block" if quantization.list_of("weight_block_size", int) else "fp8"
        return WeightDtypes(attention=packed, experts=packed, dense=packed, embedding=plain)
    if method == "mxfp4":
        return WeightDtypes(attention=plain, experts="mxfp4", dense=plain, embedding=plain)
    if method == "compressed-tensors":
        return _compressed_tensors(quantization, plain)
    raise quantization.error("quant_method", "should be fp8, mxfp4 or compressed-tensors")


def _compressed_tensors(quantization: Config, plain: str) -> WeightDtypes:
    """Formats of the compressed-tensors library; modules named under `ignore` stay as they are."""
    groups = quantization.section("config_groups")
    weights = groups.section(next(iter(groups.values), "group_0")).section("weights")
    formats = {
        (4, "int"): "int4",
        (8, "float"): "fp8_block" if weights.text("strategy") == "block" else "fp8",
    }
    packed = formats.get((weights.integer("num_bits"), weights.text("type")))
    if packed is None:
        raise weights.error("num_bits", "should be 4 (type int) or 8 (type float)")
    ignored = " ".join(quantization.list_of("ignore", str))
    return WeightDtypes(
        attention=plain if "attn" in ignored else packed,
        experts=packed,
        dense=plain if "shared_expert" in ignored or "mlp" in ignored else packed,
        embedding=plain,
    )
