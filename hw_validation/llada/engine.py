"""Builds a model on a device and measures runs with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hw_validation.environment import probe_host
from hw_validation.llada.cache import KVCache, needs_cache, span_lengths
from hw_validation.llada.config import Architecture
from hw_validation.llada.distributed import SINGLE, Parallel, check_sizes
from hw_validation.llada.floor import Ceilings, forward_floor
from hw_validation.llada.loads import ExpertLoads
from hw_validation.llada.model import Llada
from hw_validation.llada.ops import choose_ops
from hw_validation.llada.products import ProductTable
from hw_validation.llada.record import Repeat, Run, digest, environment
from hw_validation.llada.sampler import Denoiser, Forward, Generation
from hw_validation.llada.settings import RunSettings, check
from hw_validation.llada.tiles import TileTable
from hw_validation.llada.timing import StepClock, Timings
from hw_validation.llada.weights import fill_random, load_checkpoint
from hw_validation.step_kernels import KernelTable, device_events, profile_gpu, tabulate_kernels


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much to run: timed generations, untimed passes over their forwards first, whether to time the ways of
    products and tiles, and whether to list the kernels of a step afterwards.
    """

    repeats: int = 3
    warm_ups: int = 2
    tune: bool = True
    profile: bool = False


class Engine:
    """One model on one rank; every run reuses its weights."""

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device,
        dtype: torch.dtype,
        *,
        checkpoint: Path | None = None,
        full_layers: int | None = None,
        seed: int = 0,
        parallel: Parallel = SINGLE,
        ceilings: Ceilings | None = None,
    ) -> None:
        check_sizes(architecture, parallel)
        self.model = Llada(architecture, device, dtype, parallel)
        self.weights = "random" if checkpoint is None else "checkpoint"
        self._full_layers = full_layers or architecture.num_layers
        self._seed = seed
        self._ceilings = ceilings or Ceilings()
        self._tiles = TileTable()
        self._products = ProductTable()
        if checkpoint is None:
            fill_random(self.model, seed)
        else:
            load_checkpoint(self.model, checkpoint)

    def measure(self, settings: RunSettings, effort: Effort) -> Run:
        """Generate `effort.repeats` times with `settings` and record where the time went."""
        model = self.model
        check(settings, model.architecture)
        model.loads = None
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        self._choose_ops(settings, effort)
        cache = model.new_cache(settings.rows, settings.total_len) if needs_cache(settings.cache) else None
        denoiser = self._denoiser(settings, cache)
        model.loads = ExpertLoads(model.architecture, model.device) if self._counts_loads(settings) else None
        for _ in range(max(effort.warm_ups, int(settings.graphs))):
            denoiser.warm_up(self._tokens((settings.batch, settings.prompt_len), seed=-1))
        if model.loads is not None:
            model.loads.reset()
        host = probe_host()
        results = [self._generate(denoiser, settings, index) for index in range(effort.repeats)]
        kernels = self._list_kernels(denoiser, settings) if effort.profile else None
        return self._record(settings, results, host, kernels)

    def _counts_loads(self, settings: RunSettings) -> bool:
        return settings.expert_loads and self.model.architecture.is_moe

    def _choose_ops(self, settings: RunSettings, effort: Effort) -> None:
        """Set the model's operators for a run, with tiles tuned for every number of positions that it computes."""
        model = self.model
        model.ops = choose_ops(settings.expert_execution, settings.kernels, model.device, model.dtype)
        if model.ops.name != "triton":
            return
        from hw_validation.llada.fused import triton_ops
        from hw_validation.llada.tuning import tune

        products = self._products if settings.products == "tuned" else None
        model.ops = triton_ops(self._tiles, products)
        if effort.tune:
            head_rows = settings.rows * settings.block_len
            for span in sorted(span_lengths(settings)):
                tune(model, self._sample_canvas(settings, span), self._tiles, products, head_rows)

    def _sample_canvas(self, settings: RunSettings, span: int) -> Tensor:
        """Tokens [rows, span] as a forward sees them halfway: the prompt, then text of which half is masked."""
        tokens = self._tokens((settings.rows, span), seed=-1)
        hidden_half = torch.arange(span, device=tokens.device) % 2 == 0
        hidden_half[: min(settings.prompt_len, span // 2)] = False
        return tokens.masked_fill(hidden_half, self.model.architecture.mask_token_id)

    def _denoiser(self, settings: RunSettings, cache: KVCache | None) -> Denoiser:
        model = self.model
        forward: Forward = model
        if settings.graphs:
            from hw_validation.llada.graphs import GraphedForward

            forward = GraphedForward(model)
        return Denoiser(forward, settings, model.architecture.mask_token_id, cache, model.parallel.any)

    def _generate(self, denoiser: Denoiser, settings: RunSettings, index: int) -> tuple[Generation, Timings]:
        """One timed generation; `index` chooses its prompts and its random numbers."""
        device = self.model.device
        prompt = self._tokens((settings.batch, settings.prompt_len), seed=index)
        generator = torch.Generator(device).manual_seed(self._mix(index))
        clock = StepClock(device)
        clock.start()
        generation = denoiser.generate(prompt, clock, generator)
        return generation, clock.finish()

    def _tokens(self, shape: tuple[int, int], seed: int) -> Tensor:
        """Random token ids [batch, length], none of them the mask; the same on all ranks of a replica."""
        architecture = self.model.architecture
        generator = torch.Generator().manual_seed(self._mix(seed))
        ids = torch.randint(architecture.vocab_size - 1, shape, generator=generator)
        return (ids + (ids >= architecture.mask_token_id)).to(self.model.device)

    def _mix(self, index: int) -> int:
        """A seed for generation `index` of this rank's replica."""
        return (self._seed * 1_000_003 + self.model.parallel.replica * 10_007 + index + 1_000) % 2**31

    def _list_kernels(self, denoiser: Denoiser, settings: RunSettings) -> KernelTable:
        """The GPU's kernels over the shapes of forward that a generation has, a step."""
        prompt = self._tokens((settings.batch, settings.prompt_len), seed=-1)
        with profile_gpu() as profile:
            steps = denoiser.warm_up(prompt)
            if self.model.device.type == "cuda":
                torch.cuda.synchronize()
        return tabulate_kernels(device_events(profile), steps)

    def _record(
        self,
        settings: RunSettings,
        results: list[tuple[Generation, Timings]],
        host: dict[str, float],
        kernels: KernelTable | None,
    ) -> Run:
        model = self.model
        repeats = [Repeat(times, result.forwards, digest(result.tokens)) for result, times in results]
        forwards = sum(repeat.forwards for repeat in repeats)
        size = model.embedding.element_size()
        return Run(
            architecture=model.architecture,
            full_layers=self._full_layers,
            settings=settings,
            parallel=model.parallel,
            dtype=str(model.dtype).removeprefix("torch."),
            weights=self.weights,
            seed=self._seed,
            operators=model.ops.name,
            tiles=self._tile_record(),
            repeats=repeats,
            floor=forward_floor(model.architecture, settings.rows, settings.total_len, settings.block_len, size),
            ceilings=self._ceilings,
            loads=model.loads.summary(forwards, model.parallel) if model.loads else None,
            environment=environment(model.device) | host,
            kernels=kernels,
            peak_memory_bytes=torch.cuda.max_memory_allocated() if model.device.type == "cuda" else 0,
        )

    def _tile_record(self) -> dict[str, Any]:
        if self.model.ops.name != "triton":
            return {}
        return self._tiles.as_dict() | {"products": self._products.as_dict()}
