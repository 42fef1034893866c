"""Which masks go when, and what they become."""

# ruff: noqa: E402 - what is imported depends on what is installed

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hw_validation.llada.config import InputError
from hw_validation.llada.sampler import Denoiser, choose_tokens, guide, select_masks, unmask_schedule
from hw_validation.llada.settings import RunSettings, check
from hw_validation.llada.timing import StepClock
from tests.hw_validation.llada.models import CPU, MOE, build, tokens_of


def generate(settings, forward=None, prompt=None, seed=0):
    model = forward or build(MOE)
    prompt = tokens_of(MOE, settings.batch, settings.prompt_len) if prompt is None else prompt
    denoiser = Denoiser(model, settings, MOE.mask_token_id)
    return denoiser.generate(prompt, StepClock(CPU), torch.Generator().manual_seed(seed))


def short(**changes):
    values = {"prompt_len": 5, "generation_len": 12, "steps": 6, "block_len": 6}
    return RunSettings(**{**values, **changes})


@pytest.mark.parametrize(
    ("block", "steps", "shares"), [(32, 16, [2] * 16), (6, 4, [2, 2, 1, 1]), (5, 5, [1] * 5), (7, 1, [7])]
)
def test_schedule(block, steps, shares):
    assert list(unmask_schedule(block, steps)) == shares


def reference_decode(logits_of, prompt, settings, mask):
    """The published decoding at temperature 0 without cache, written plainly for one sequence at a time."""
    canvas = torch.cat((prompt, torch.full((prompt.shape[0], settings.generation_len), mask)), dim=1)
    for block in range(settings.num_blocks):
        end = settings.prompt_len + (block + 1) * settings.block_len
        for count in unmask_schedule(settings.block_len, settings.steps_per_block):
            logits = logits_of(canvas)
            logits[..., mask] = -torch.inf
            best = logits.argmax(dim=-1)
            confidence = torch.softmax(logits.double(), dim=-1).gather(-1, best.unsqueeze(-1)).squeeze(-1)
            for row in range(canvas.shape[0]):
                open_masks = [p for p in range(end) if canvas[row, p] == mask and p >= settings.prompt_len]
                for place in sorted(open_masks, key=lambda p: -confidence[row, p].item())[:count]:
                    canvas[row, place] = best[row, place]
    return canvas[:, settings.prompt_len :]


@pytest.mark.parametrize("steps", [12, 6, 4])
def test_no_cache_equals_the_published_decoding(steps):
    settings = short(steps=steps, batch=3)
    model = build(MOE)
    prompt = torch.randint(MOE.mask_token_id, (3, settings.prompt_len), generator=torch.Generator().manual_seed(3))

    def logits_of(canvas):
        positions = torch.arange(canvas.shape[1])
        return model(canvas, positions, positions)

    expected = reference_decode(logits_of, prompt, settings, MOE.mask_token_id)
    result = generate(settings, model, prompt)
    assert torch.equal(result.tokens, expected)
    shares = unmask_schedule(settings.block_len, settings.steps_per_block)
    assert result.unmasked == tuple(3 * share for share in shares * settings.num_blocks)


class CountingForward:
    """A forward that keeps how many masks each call saw."""

    def __init__(self):
        self.model = build(MOE)
        self.masks = []

    def __call__(self, tokens, positions, rows, cache=None):
        self.masks.append((tokens == MOE.mask_token_id).sum(dim=1).tolist())
        return self.model(tokens, positions, rows, cache)


@pytest.mark.parametrize("remasking", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_every_step_unmasks_its_share(remasking, temperature):
    settings = short(steps=8, batch=2, remasking=remasking, temperature=temperature)
    forward = CountingForward()
    result = generate(settings, forward, prompt=torch.ones(2, 5, dtype=torch.long))
    left = [12, 10, 8, 7, 6, 4, 2, 1]
    assert forward.masks == [[count, count] for count in left]
    assert not (result.tokens == MOE.mask_token_id).any()


def test_random_order_depends_on_the_seed():
    settings = short(remasking="random")
    model = build(MOE)
    one, same, other = (generate(settings, model, seed=seed).tokens for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_threshold_unmasks_all_that_are_sure_and_always_one():
    confidence = torch.tensor([[0.2, 0.95, 0.9, 0.99], [0.1, 0.2, 0.3, 0.99]])
    masked = torch.tensor([[True, True, True, True], [True, True, True, False]])
    selected = select_masks(confidence, masked, 0, 0.9)
    assert selected.tolist() == [[False, True, True, True], [False, False, True, False]]
    assert not select_masks(confidence, torch.zeros_like(masked), 0, 0.9).any()


def test_threshold_decoding_ends_with_no_mask():
    sure = generate(short(threshold=1e-6, batch=2))
    assert sure.forwards == 2
    assert sure.unmasked == (12, 12)
    unsure = generate(short(threshold=1.0, batch=2))
    assert unsure.forwards == 12
    assert not (unsure.tokens == MOE.mask_token_id).any()


def test_confidence_is_the_probability_of_the_chosen_token():
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    tokens, confidence = choose_tokens(logits, 0.0, "low_confidence", None)
    torch.testing.assert_close(confidence, torch.softmax(logits, dim=-1).amax(dim=-1))
    assert torch.equal(tokens, logits.argmax(dim=-1))


def test_gumbel_noise_samples_the_tempered_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(20000, 3)
    tokens, _ = choose_tokens(logits, 0.5, "low_confidence", torch.Generator().manual_seed(0))
    observed = torch.bincount(tokens, minlength=3) / 20000
    torch.testing.assert_close(observed, torch.softmax(logits[0] / 0.5, dim=-1), rtol=0, atol=0.01)


def test_guidance():
    prompted, blind = torch.randn(2, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guide(torch.cat((prompted, blind)), 0.0), prompted)
    torch.testing.assert_close(guide(torch.cat((prompted, blind)), 1.5), blind + 2.5 * (prompted - blind))


def test_tiny_guidance_changes_nothing_and_doubles_the_batch():
    forward = CountingForward()
    plain = generate(short(batch=2), forward)
    guided = generate(short(batch=2, cfg_scale=1e-9), forward)
    assert torch.equal(plain.tokens, guided.tokens)
    assert [len(masks) for masks in forward.masks] == [2] * 6 + [4] * 6
    assert all(masks[2] == masks[0] + 5 for masks in forward.masks[6:7] if masks[0] == 12)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"block_len": 5}, "block_len: 5 does not divide"),
        ({"steps": 7}, "steps: 7 must be a multiple"),
        ({"steps": 24}, "steps: 24 exceeds"),
        ({"batch": 0}, "batch: 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"threshold": 1.5}, "threshold: 1.5"),
        ({"threshold": 0.9, "remasking": "random"}, "threshold"),
        ({"cache_refresh": 2}, "cache_refresh"),
        ({"prompt_len": 250}, "256 positions"),
        ({"graphs": True, "expert_execution": "loop"}, "graphs"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, word):
    with pytest.raises(InputError, match=word):
        check(short(**changes), MOE)
