from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from hw_validation.engine import TracedEngine
from hw_validation.forced_routing import ForcedRouting, PackedScores, expert_shares, summarize_counts, wrap
from hw_validation.plan import plan_points
from hw_validation.records import RecordLog, read_records
from hw_validation.vllm_sweep import Sweep
from moesim.errors import InputError
from tests.hw_validation.fakes import LIMITS, FakeEngine

torch = pytest.importorskip("torch")


class Router:
    """As vLLM's: two best of the scores."""

    def _compute_routing(self, hidden: Any, logits: Any, indices_type: Any, *, input_ids: Any = None) -> Any:  # noqa: ARG002
        best = logits.topk(2)
        return best.values, best.indices.to(indices_type)


@pytest.fixture
def routed() -> tuple[ForcedRouting, list[Any]]:
    """A forced routing of eight experts, and two routers (layers) that it is put into."""

    class Own(Router):
        pass

    forced = ForcedRouting(8)
    wrap(Own, forced)
    routers = [Own(), Own()]
    for router in routers:
        route(router, 1)
    return forced, routers


def route(router: Any, tokens: int) -> Any:
    """Experts for tokens whose own scores favour the last ones."""
    own = torch.arange(8.0).expand(tokens, 8).to(torch.bfloat16)
    with torch.inference_mode():
        return router._compute_routing(own, own, torch.int32, input_ids=None)[1]


def test_routers_choose_for_themselves_until_told(routed: tuple[ForcedRouting, list[Any]]) -> None:
    forced, routers = routed
    assert route(routers[0], 5).tolist() == [[7, 6]] * 5
    forced.force("zipf:1")
    assert route(routers[0], 50).unique().numel() > 2
    forced.force("")
    assert route(routers[0], 5).tolist() == [[7, 6]] * 5


def test_padded_rows_are_packed_and_told() -> None:
    class Own(Router):
        pass

    packed = PackedScores()
    wrap(Own, packed)
    seen: list[bool] = []
    plain = packed.scores
    packed.scores = lambda own: seen.append(plain(own).is_contiguous()) or plain(own)  # pyright: ignore
    scores = torch.arange(16.0).reshape(2, 8)[:, :6]
    router: Any = Own()
    assert router._compute_routing(scores, scores, torch.int32)[1].tolist() == [[5, 4]] * 2
    assert seen == [True]
    assert packed.strides == {(8, 1)}


@pytest.mark.parametrize(("routing", "exponent"), [("uniform", 0.0), ("zipf:1.2", 1.2)])
def test_shares_are_those_asked_for(routed: tuple[ForcedRouting, list[Any]], routing: str, exponent: float) -> None:
    torch.manual_seed(0)
    forced, routers = routed
    forced.force(routing, popular_first=True)
    first = torch.cat([route(routers[1], 512)[:, 0] for _ in range(40)])
    found = torch.bincount(first, minlength=8) / first.numel()
    weights = torch.arange(1.0, 9.0) ** -exponent
    assert torch.allclose(found, weights / weights.sum(), atol=0.015)


def test_experts_of_a_token_differ(routed: tuple[ForcedRouting, list[Any]]) -> None:
    forced, routers = routed
    forced.force("zipf:3")
    ids = route(routers[0], 300)
    assert (ids[:, 0] != ids[:, 1]).all()


def test_counts_are_kept_by_layer_and_long_prompts_are_sampled(routed: tuple[ForcedRouting, list[Any]]) -> None:
    forced, routers = routed
    forced.reset()
    route(routers[1], 3)
    assert [sum(layer) for layer in forced.counts()] == [0, 6]
    route(routers[0], 51_200)
    assert sum(forced.counts()[0]) == 2 * 512
    assert forced.counts()[1][7] == 3


def test_popular_experts_are_first_or_spread() -> None:
    first, spread = expert_shares("zipf:1", 8, popular_first=True), expert_shares("zipf:1", 8)
    assert first == sorted(first, reverse=True)
    assert sorted(spread) == pytest.approx(sorted(first))
    assert sum(spread[:4]) < sum(first[:4])
    with pytest.raises(InputError, match="unknown 'zipf'"):
        expert_shares("zipf", 8)


def test_imbalance_of_counts() -> None:
    one = [[4, 0, 0, 0], [1, 1, 1, 1]]
    values = summarize_counts([one, one], expert_ranks=2)
    assert values == {
        "routed_max_over_mean": 2.5,
        "routed_gini": 0.375,
        "routed_experts_mean": 2.5,
        "routed_rank_max_over_mean": 1.5,
    }
    assert "routed_rank_max_over_mean" not in summarize_counts([one], expert_ranks=1)
    assert summarize_counts([[[0, 0]]], expert_ranks=1) == {}


def test_a_sweep_forces_each_point_and_records_the_counts(
    routed: tuple[ForcedRouting, list[Any]], tmp_path: Path
) -> None:
    forced, routers = routed
    asked: list[tuple[str, bool]] = []
    plain = forced.force

    def force(routing: str, popular_first: bool = False) -> None:
        asked.append((routing, popular_first))
        plain(routing, popular_first)

    class Routing(FakeEngine):
        def step(self) -> list[tuple[str, int, bool]]:
            route(routers[0], 4)
            return super().step()

    forced.force = force  # pyright: ignore[reportAttributeAccessIssue]
    engine = Routing(forced=forced, expert_ranks=2)
    points = plan_points(["redrawn", "forced"], [64], LIMITS)
    sweep = Sweep(cast("TracedEngine", engine), RecordLog(tmp_path / "runs.jsonl"), float("inf"))
    assert sweep.run(points)
    records = list(read_records(tmp_path / "runs.jsonl"))
    assert asked[:5] == [("", False), ("", False), ("", True), ("", True), ("uniform", False)]
    assert engine.spreads == [-1.0, -1.0, 0.0]
    assert all(len(record.tables["expert_counts"]) == 2 for record in records)
    falling = [r.values["routed_rank_max_over_mean"] for r in records if r.key.endswith("zipf:1.2/falling")]
    assert falling and min(value for value in falling if value) > 1.2
