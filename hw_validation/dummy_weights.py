"""Makes an engine's random weights route as trained ones do: each layer for itself, every expert about as often.

Engines fill every parameter of one size with the same numbers. All layers then send a token to the same experts,
a selection bias (DeepSeek-V3) sends all tokens to a few experts, and 8-bit weights round to zero. None of this
changes a shape, but it changes which experts are read, which is what a step costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ROUTER = re.compile(r"(\.gate|\.router\.layer)\.weight$")
_BIAS = re.compile(r"e_score_correction_bias$")
_NORM = re.compile(r"norm[^.]*\.weight$")
_SCALE = re.compile(r"weight_scale(_inv)?$")
_FP8_SCALE = 1e-3
_FP8_MASK = 0b1011_1111


def condition_weights(model: torch.nn.Module) -> dict[str, int]:
    """Redraw routers, set norm weights to one, selection biases to zero and 8-bit weights to random bytes.

    Returns how many parameters of each sort were set. Everything is done in place, so captured graphs see it.
    """
    import torch

    counts = {"fp8_tensors_filled": 0, "norms_set": 0}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.element_size() == 1:
                parameter.data.view(torch.uint8).random_(0, 256).bitwise_and_(_FP8_MASK)
                counts["fp8_tensors_filled"] += 1
            elif _SCALE.search(name):
                parameter.data.fill_(_FP8_SCALE)
            elif _NORM.search(name) and parameter.dim() == 1:
                parameter.data.fill_(1.0)
                counts["norms_set"] += 1
            elif _BIAS.search(name):
                parameter.data.zero_()
    return counts | {"routers_redrawn": draw_routers(model, 0.0)}


def draw_routers(model: torch.nn.Module, spread: float, seed: int = 0, falling: bool = False) -> int:
    """Fill each router with its own normal numbers; row lengths are log-normal with `spread` (0: all alike).

    A token's score for an expert is then normal with the row's length as its standard deviation, so experts
    with long rows are chosen more often. `falling` puts the longest first: the popular experts are then those of
    the first expert-parallel ranks. Returns the number of routers.
    """
    import torch

    count = 0
    with torch.no_grad():
        for parameter in _routers(model):
            generator = torch.Generator().manual_seed(seed + count)
            rows = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
            lengths = torch.exp(spread * torch.randn(parameter.shape[0], 1, generator=generator))
            if falling:
                lengths = lengths.sort(dim=0, descending=True).values
            parameter.data.copy_((rows * lengths).to(parameter.dtype))
            count += 1
    return count


def estimate_loads(model: torch.nn.Module, top_k: int, num_tokens: int = 4096, ranks: int = 1) -> dict[str, float]:
    """How evenly tokens spread over the experts, from the routers alone (random unit-variance hidden states).

    Mean over layers of: the most loaded expert's tokens over the mean, and the Gini index of the tokens. With
    more than one expert-parallel rank also the most loaded rank's tokens over the mean, each rank holding a run of
    neighbouring experts.
    """
    import torch

    maxima: list[float] = []
    ginis: list[float] = []
    rank_maxima: list[float] = []
    for parameter in _routers(model):
        weight = parameter.detach().float()
        hidden = torch.randn(num_tokens, weight.shape[1], device=weight.device)
        chosen = (hidden @ weight.T).topk(min(top_k, weight.shape[0]), dim=1).indices
        counts = torch.bincount(chosen.flatten(), minlength=weight.shape[0]).float()
        shares = torch.stack([part.sum() for part in counts.tensor_split(ranks)])
        rank_maxima.append(float(shares.max() / shares.mean()))
        load = counts.sort().values
        place = torch.arange(1, len(load) + 1, device=load.device)
        maxima.append(float(load[-1] / load.mean()))
        ginis.append(float(2 * (place * load).sum() / (len(load) * load.sum()) - (len(load) + 1) / len(load)))
    if not maxima:
        return {}
    count = len(maxima)
    loads = {"expert_load_max_over_mean": sum(maxima) / count, "expert_load_gini": sum(ginis) / count}
    return loads | ({"rank_load_max_over_mean": sum(rank_maxima) / count} if ranks > 1 else {})


def _routers(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    for name, parameter in model.named_parameters():
        if _ROUTER.search(name) and parameter.dim() == 2 and parameter.shape[0] > 1:
            yield parameter
