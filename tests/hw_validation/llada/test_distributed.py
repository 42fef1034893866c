"""Sharded models on gloo ranks: the same logits as one process."""

# ruff: noqa: E402 - what is imported depends on what is installed

from __future__ import annotations

import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist
import torch.multiprocessing as mp

from hw_validation.llada.config import InputError
from hw_validation.llada.distributed import Parallel, check_sizes, make_groups
from hw_validation.llada.loads import ExpertLoads
from hw_validation.llada.sampler import Denoiser
from hw_validation.llada.settings import RunSettings
from hw_validation.llada.timing import StepClock
from tests.hw_validation.llada.models import CPU, DENSE, MOE, all_logits, build, tokens_of

RUN = RunSettings(prompt_len=5, generation_len=4, block_len=4, threshold=0.02)
LAYOUTS = {2: [(2, 1), (1, 2), (2, 2)], 4: [(4, 1), (1, 4), (4, 4), (2, 4)]}
"""(tp, ep) by number of ranks."""


def prompts(replica):
    return tokens_of(MOE, 1, RUN.prompt_len, seed=replica)


def check_layout(tp, ep):
    """Compare this rank's logits, text and expert loads with those of one process; each replica has its prompt."""
    parallel = make_groups(tp, ep)
    tokens = tokens_of(MOE, 2, 19, seed=parallel.replica)
    sharded, whole = build(MOE, parallel), build(MOE)
    sharded.loads = ExpertLoads(MOE, CPU)
    torch.testing.assert_close(all_logits(sharded, tokens), all_logits(whole, tokens), rtol=1e-4, atol=1e-4)
    total = sharded.loads.summary(1, parallel).tokens
    replicas = parallel.replicas if ep > 1 else 1
    assert [sum(layer) for layer in total] == [replicas * 2 * 19 * MOE.experts_per_token] * MOE.num_layers
    results = [
        Denoiser(model, RUN, MOE.mask_token_id, None, vote).generate(prompts(parallel.replica), StepClock(CPU))
        for model, vote in ((sharded, parallel.any), (whole, bool))
    ]
    assert torch.equal(results[0].tokens, results[1].tokens)
    if ep == 1:
        dense = tokens_of(DENSE, 2, 19)
        expected = all_logits(build(DENSE), dense)
        torch.testing.assert_close(all_logits(build(DENSE, parallel), dense), expected, rtol=1e-4, atol=1e-4)


def run_rank(rank, world, store, report):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for tp, ep in LAYOUTS[world]:
        check_layout(tp, ep)
    dist.barrier()
    if rank == 0:
        report.write_text(json.dumps(LAYOUTS[world]))
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_sharded_logits_equal_one_process(world, tmp_path):
    report = tmp_path / "report.json"
    mp.spawn(run_rank, args=(world, str(tmp_path / "store"), report), nprocs=world)
    assert json.loads(report.read_text()) == [list(layout) for layout in LAYOUTS[world]]


@pytest.mark.parametrize(
    ("architecture", "parallel", "word"),
    [
        (DENSE, Parallel(world=2, ep=2), "no routed experts"),
        (DENSE, Parallel(world=3, tp=3), "tp: 3 does not divide the 4"),
        (MOE, Parallel(world=3, ep=3), "ep: 3 does not divide the 8 experts"),
        (replace(MOE, vocab_size=126), Parallel(world=4, tp=4), "vocabulary"),
        (replace(MOE, expert_size=30), Parallel(world=4, tp=4), "feed-forward width"),
    ],
)
def test_sizes_that_do_not_divide_are_named(architecture, parallel, word):
    with pytest.raises(InputError, match=word):
        check_sizes(architecture, parallel)


def test_owners_of_experts():
    ranks = [Parallel(rank=rank, world=4, ep=4) for rank in range(4)]
    assert [[rank.local_expert(expert, 8) for expert in (0, 1, 5)] for rank in ranks] == [
        [0, 1, None],
        [None, None, None],
        [None, None, 1],
        [None, None, None],
    ]
