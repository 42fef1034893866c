"""What one run does: decoding, cache and execution settings, checked before anything is allocated."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hw_validation.llada.config import Architecture, InputError

Remasking = Literal["low_confidence", "random"]
CacheKind = Literal["none", "prefix", "dual"]
Execution = Literal["loop", "grouped"]
KernelChoice = Literal["auto", "torch", "triton"]
Products = Literal["tuned", "blas"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """One run: `batch` prompts of `prompt_len` tokens (a data-parallel replica), `generation_len` tokens each.

    Generation is cut into blocks of `block_len` tokens; the `steps` denoising steps are shared evenly among the
    blocks. `threshold` replaces the fixed number of tokens a step by all tokens at least that probable.
    `products`: dense products by the way found fastest on the device, or as PyTorch's BLAS library does them.
    `cache_refresh` is the number of steps between full forwards inside a block (0: one, at the block's start).
    """

    prompt_len: int = 60
    generation_len: int = 128
    steps: int = 64
    block_len: int = 32
    batch: int = 1
    temperature: float = 0.0
    cfg_scale: float = 0.0
    remasking: Remasking = "low_confidence"
    threshold: float | None = None
    cache: CacheKind = "none"
    cache_refresh: int = 0
    expert_execution: Execution = "grouped"
    kernels: KernelChoice = "auto"
    products: Products = "tuned"
    graphs: bool = False
    expert_loads: bool = False

    @property
    def num_blocks(self) -> int:
        """Blocks of the generated text."""
        return self.generation_len // self.block_len

    @property
    def steps_per_block(self) -> int:
        """Denoising steps of each block (without a threshold)."""
        return self.steps // self.num_blocks

    @property
    def total_len(self) -> int:
        """Positions of a sequence: prompt and generated text."""
        return self.prompt_len + self.generation_len

    @property
    def rows(self) -> int:
        """Sequences in one forward: guidance runs each prompt with and without its text."""
        return self.batch * (2 if self.cfg_scale > 0 else 1)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def check(settings: RunSettings, architecture: Architecture) -> RunSettings:
    """The same settings, or an `InputError` that names the first one that cannot work."""
    for name in ("prompt_len", "generation_len", "steps", "block_len", "batch"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name}: {getattr(settings, name)} is out of range, must be at least 1")
    for name in ("temperature", "cfg_scale", "cache_refresh"):
        if getattr(settings, name) < 0:
            raise InputError(f"{name}: {getattr(settings, name)} is out of range, must not be negative")
    _check_schedule(settings)
    if settings.total_len > architecture.max_positions:
        raise InputError(
            f"prompt_len + generation_len: {settings.total_len} exceeds the {architecture.max_positions} positions "
            f"of {architecture.name}"
        )
    if settings.cache_refresh and settings.cache == "none":
        raise InputError("cache_refresh: needs a cache (--cache prefix or dual)")
    if settings.graphs and settings.expert_execution == "loop" and architecture.is_moe:
        raise InputError("graphs: the expert loop asks the host which tokens it has; use --expert-execution grouped")
    return settings


def _check_schedule(settings: RunSettings) -> None:
    if settings.generation_len % settings.block_len:
        raise InputError(f"block_len: {settings.block_len} does not divide generation_len {settings.generation_len}")
    if settings.threshold is None:
        blocks = settings.num_blocks
        if settings.steps % blocks:
            raise InputError(f"steps: {settings.steps} must be a multiple of the {blocks} blocks")
        if settings.steps_per_block > settings.block_len:
            raise InputError(f"steps: {settings.steps} exceeds generation_len {settings.generation_len}")
    elif not 0 < settings.threshold <= 1:
        raise InputError(f"threshold: {settings.threshold} is out of range, must be in (0, 1]")
    elif settings.remasking == "random":
        raise InputError("threshold: needs --remasking low_confidence (random order has no confidence)")
