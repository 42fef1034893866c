"""Block-wise denoising: which tokens the masks become, and which masks go at each step.

Every step runs the model over the current text and replaces some masks of the current block by the model's most
probable (or sampled) tokens: a fixed number of the most confident ones, the same number in random order, or all
that are confident enough. Only the block's own positions are ever turned into logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hw_validation.llada.cache import KVCache, Span, plan_span
from hw_validation.llada.settings import Remasking, RunSettings

Forward = Callable[[Tensor, Tensor, Tensor, KVCache | None], Tensor]
"""Tokens [batch, span], positions [span], rows [n] and a cache to logits [batch, n, vocabulary]."""


class Clock(Protocol):
    """Told when a step begins, when its logits are there and when its tokens are."""

    def begin(self) -> None:
        """A step begins."""

    def predicted(self) -> None:
        """The forward is done."""

    def sampled(self) -> None:
        """The tokens are chosen."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The finished text [batch, generation_len] and the tokens of the batch that each forward unmasked."""

    tokens: Tensor
    unmasked: tuple[int, ...]

    @property
    def forwards(self) -> int:
        """Forwards that the text took."""
        return len(self.unmasked)


def unmask_schedule(block_len: int, steps: int) -> tuple[int, ...]:
    """How many of a block's tokens each of its `steps` steps unmasks: an even split, the larger shares first."""
    base, extra = divmod(block_len, steps)
    return tuple(base + (step < extra) for step in range(steps))


def guide(logits: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: [2 * batch, ...], text after text without prompt, to [batch, ...]."""
    prompted, blind = logits.chunk(2)
    return blind + (scale + 1.0) * (prompted - blind)


def choose_tokens(
    logits: Tensor, temperature: float, remasking: Remasking, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """A token for every row of `logits` [..., vocabulary] and how confident the model is in it, both [...].

    Above temperature 0 the token is sampled (Gumbel noise); the confidence is its probability at temperature 1, or
    a random number for random remasking. Computed in float32.
    """
    scores = logits.float()
    noisy = scores
    if temperature > 0:
        waits = torch.empty_like(scores).exponential_(generator=generator)
        noisy = scores - temperature * waits.log()
    tokens = noisy.argmax(dim=-1)
    if remasking == "random":
        return tokens, torch.rand(tokens.shape, device=tokens.device, generator=generator)
    chosen = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return tokens, (chosen - scores.logsumexp(dim=-1)).exp()


def select_masks(confidence: Tensor, masked: Tensor, count: int, threshold: float | None) -> Tensor:
    """The masks to replace now: a boolean [batch, block], given confidences and masks of that shape.

    Without a threshold the `count` most confident masks of each sequence; with one, the most confident and all
    others at least that probable.
    """
    ranked = confidence.masked_fill(~masked, -torch.inf)
    best = ranked.topk(1 if threshold is not None else count, dim=-1).indices
    selected = torch.zeros_like(masked).scatter_(1, best, True)
    if threshold is not None:
        selected |= ranked >= threshold
    return selected & masked


class Denoiser:
    """Turns prompts into text with one forward function and one group of settings."""

    def __init__(
        self,
        forward: Forward,
        settings: RunSettings,
        mask_token: int,
        cache: KVCache | None = None,
        any_rank: Callable[[Tensor], bool] = bool,
    ) -> None:
        self._forward = forward
        self._settings = settings
        self._mask = mask_token
        self._cache = cache
        self._any = any_rank

    def generate(self, prompt: Tensor, clock: Clock, generator: torch.Generator | None = None) -> Generation:
        """The text after `prompt` [batch, prompt_len]."""
        settings = self._settings
        canvas = torch.full((prompt.shape[0], settings.total_len), self._mask, device=prompt.device)
        canvas[:, : settings.prompt_len] = prompt
        unmasked: list[int] = []
        for block in range(settings.num_blocks):
            unmasked += self._denoise_block(canvas, block, clock, generator)
        return Generation(canvas[:, settings.prompt_len :], tuple(unmasked))

    def warm_up(self, prompt: Tensor) -> int:
        """Run every shape of forward that a generation has, and the sampling, untimed; returns the steps."""
        settings = self._settings
        canvas = torch.full((prompt.shape[0], settings.total_len), self._mask, device=prompt.device)
        for block in range(settings.num_blocks):
            start = settings.prompt_len + block * settings.block_len
            for step in (0, 1):
                logits = self._predict(canvas, plan_span(settings, block, step), start)
                window = torch.full_like(canvas[:, : settings.block_len], self._mask)
                self._unmask(window, torch.ones_like(window, dtype=torch.bool), logits, 1, None)
        return 2 * settings.num_blocks

    def _denoise_block(self, canvas: Tensor, block: int, clock: Clock, generator: torch.Generator | None) -> list[int]:
        """Replace the block's masks in `canvas` [batch, total_len]; returns the tokens that each step unmasked."""
        settings = self._settings
        start = settings.prompt_len + block * settings.block_len
        window = canvas[:, start : start + settings.block_len]
        masked = torch.ones_like(window, dtype=torch.bool)
        schedule = unmask_schedule(settings.block_len, settings.steps_per_block) if settings.threshold is None else ()
        unmasked: list[int] = []
        while True:
            step = len(unmasked)
            clock.begin()
            logits = self._predict(canvas, plan_span(settings, block, step), start)
            clock.predicted()
            count = schedule[step] if schedule else 0
            selected = self._unmask(window, masked, logits, count, generator)
            unmasked.append(count * window.shape[0] if schedule else int(selected.sum()))
            finished = step + 1 == len(schedule) if schedule else not self._any(masked.any())
            clock.sampled()
            if finished:
                return unmasked

    def _predict(self, canvas: Tensor, span: Span, start: int) -> Tensor:
        """Logits [batch, block, vocabulary] of the block that begins at position `start`; the mask is no answer."""
        settings, device = self._settings, canvas.device
        tokens = canvas
        if settings.cfg_scale > 0:
            blind = canvas.clone()
            blind[:, : settings.prompt_len] = self._mask
            tokens = torch.cat((canvas, blind))
        positions = torch.arange(span.first, span.stop, device=device)
        rows = torch.arange(start - span.first, start - span.first + settings.block_len, device=device)
        logits = self._forward(tokens[:, span.first : span.stop], positions, rows, self._cache)
        if settings.cfg_scale > 0:
            logits = guide(logits, settings.cfg_scale)
        logits[..., self._mask] = -torch.inf
        return logits

    def _unmask(
        self, window: Tensor, masked: Tensor, logits: Tensor, count: int, generator: torch.Generator | None
    ) -> Tensor:
        """Write the chosen tokens into `window` and clear them in `masked`, both [batch, block]."""
        settings = self._settings
        tokens, confidence = choose_tokens(logits, settings.temperature, settings.remasking, generator)
        selected = select_masks(confidence, masked, count, settings.threshold)
        window.copy_(torch.where(selected, tokens, window))
        masked &= ~selected
        return selected
