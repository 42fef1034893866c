"""Expert load balancing while the engine runs: popularity drifts, maps are planned from what was seen, weights move.

Time is engine steps. Popularity turns from one draw of the routing into another in `drift_steps` steps and back, in
eighths of the way. Without balancing the map stays; with it the engine plans anew every `step_interval` steps from
the loads counted over the last `window_size` steps, as EPLB does. A new map is in use once the weights have moved:
after a stop of the whole group, or, asynchronously, that many seconds of steps later. Each pair of popularity and map
is costed once by the same cost model as everything else, and steps add the difference to the static tables.
Left out: the planning itself (0.1 to 1 s on the host) and what asynchronous copies take from the fabric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from moesim.costs.exchange import expert_exchange
from moesim.costs.experts import rank_loads, routed_experts
from moesim.costs.layout import Layout, make_layout
from moesim.placement.baselines import linear, round_robin
from moesim.placement.deployed import deployed_map, expert_layout
from moesim.placement.eplb import eplb_global
from moesim.placement.migration import migrate
from moesim.placement.transfer import expert_bytes, transfer_seconds
from moesim.routing.imbalance import max_over_mean
from moesim.routing.loads import make_bank
from moesim.routing.popularity import popularity
from moesim.routing.synthetic import drifted_popularity
from moesim.specs.model import MixtureOfExperts
from moesim.specs.routing import Routing

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_POSITIONS = 8
_SIZES = 10


@dataclass(frozen=True, slots=True)
class Shift:
    """What a segment adds to the static tables: seconds by group tokens, a stall of its first step, steps it holds."""

    tokens: FloatArray
    extra_s: FloatArray
    stall_s: float
    steps: int

    def extra(self, group_tokens: int) -> float:
        """Seconds that each step takes longer (or, negative, shorter)."""
        return float(np.interp(group_tokens, self.tokens, self.extra_s))


@dataclass(slots=True)
class Rebalancing:
    """What balancing did in a run, summed.

    `ratio_steps`: rank max over mean of each step, summed over `steps` steps (divide for the mean).
    `stalled_s`: time the group stood still; `added_s`: routed experts against the static tables, in all.
    """

    rearrangements: int = 0
    bytes_moved: float = 0.0
    moving_s: float = 0.0
    stalled_s: float = 0.0
    added_s: float = 0.0
    ratio_steps: float = 0.0
    steps: int = 0

    @property
    def rank_max_over_mean(self) -> float:
        """Mean over steps of the fullest rank over the mean rank."""
        return self.ratio_steps / self.steps if self.steps else 1.0


@dataclass(frozen=True, slots=True)
class _Costed:
    """A pair of popularity and map: seconds of a step's routed experts and exchange, and rank ratio, by tokens."""

    seconds: FloatArray
    ratio: FloatArray


@dataclass(slots=True)
class Course:
    """The state of a lockstep group: which map is in use, which is on its way, and what was costed so far."""

    layout: Layout
    moe: MixtureOfExperts
    start: FloatArray
    turn: FloatArray
    tokens: FloatArray
    rng: np.random.Generator
    maps: list[IntArray]
    static: FloatArray
    log: Rebalancing = field(default_factory=Rebalancing)
    active: int = 0
    pending: tuple[int, int] | None = None
    planned_steps: int = 0
    costed: dict[tuple[int, int], _Costed] = field(default_factory=dict[tuple[int, int], _Costed])

    def advance(self, step: int, group_tokens: int, last_step_s: float) -> Shift:
        """The shift of a segment that starts at `step`, with a group of `group_tokens` tokens.

        Plans and activates what falls due. `last_step_s` tells how many steps an asynchronous move takes.
        """
        stall = self._plan(step, group_tokens, last_step_s)
        if self.pending is not None and step >= self.pending[1]:
            self.active, self.pending = self.pending[0], None
        costed = self._cost(_position(step, self.layout.routing.drift_steps), self.active)
        return Shift(self.tokens, costed.seconds - self.static, stall, self._steps_left(step))

    def record(self, shift: Shift, step: int, group_tokens: int, steps: int) -> None:
        """Count a segment of `steps` steps that ran with `shift` from `step` on."""
        costed = self._cost(_position(step, self.layout.routing.drift_steps), self.active)
        self.log.steps += steps
        self.log.ratio_steps += steps * float(np.interp(group_tokens, self.tokens, costed.ratio))
        self.log.added_s += steps * shift.extra(group_tokens)
        self.log.stalled_s += shift.stall_s

    def _steps_left(self, step: int) -> int:
        """Steps until the popularity, the plan or the map changes."""
        ends: list[float] = [step + (1 << 30)]
        drift, eplb = self.layout.routing.drift_steps, self.layout.deployment.eplb
        if drift:
            width = drift / _POSITIONS
            ends.append(math.floor(step / width + 0.5) * width + 0.5 * width)
        if eplb is not None:
            ends.append((step // eplb.step_interval + 1) * eplb.step_interval)
        if self.pending is not None:
            ends.append(self.pending[1])
        return max(1, math.ceil(min(ends)) - step)

    def _plan(self, step: int, group_tokens: int, last_step_s: float) -> float:
        """Rearrange when an interval is over; returns seconds that the group stands still."""
        eplb = self.layout.deployment.eplb
        if eplb is None or step // eplb.step_interval <= self.planned_steps // eplb.step_interval:
            return 0.0
        self.planned_steps = step
        loads = self._seen(step, eplb.window_size, group_tokens)
        ranks, slots = self.layout.deployment.expert_parallel_size, self.maps[0].shape[1]
        planned = np.stack([eplb_global(row, slots, ranks) for row in loads])
        nodes = self.layout.cluster.num_nodes
        current = self.maps[self.active if self.pending is None else self.pending[0]]
        moved = migrate(current, planned, self.moe.num_experts, ranks, nodes)
        if not moved.replicas_moved:
            return 0.0
        scale = self.layout.model.num_moe_layers / len(planned)
        size = expert_bytes(self.layout.model, self.layout.deployment) * scale
        move_s = transfer_seconds(moved, size, self.layout.cluster, self.layout.parameters)
        self.log.rearrangements += 1
        self.log.bytes_moved += moved.replicas_moved * size
        self.log.moving_s += move_s
        self.maps.append(moved.physical)
        if eplb.use_async:
            self.pending = (len(self.maps) - 1, step + max(1, math.ceil(move_s / max(last_step_s, 1e-9))))
            return 0.0
        self.active, self.pending = len(self.maps) - 1, None
        return move_s

    def _seen(self, step: int, window: int, group_tokens: int) -> FloatArray:
        """Loads [layers, experts] counted over the last `window` steps: expected shares, with counting noise."""
        first = max(step - window, 0)
        positions = [_position(at, self.layout.routing.drift_steps) for at in np.linspace(first, step, 9).astype(int)]
        shares = np.mean([self._inclusion(position) for position in positions], axis=0)
        seen = max(group_tokens * (step - first), 1)
        return self.rng.poisson(shares * seen).astype(float)

    def _routing(self, position: int) -> Routing:
        """The scenario's own routing at the start, counts of the turned popularity elsewhere."""
        if position == 0:
            return self.layout.routing
        rows = drifted_popularity(self.start, self.turn, position / _POSITIONS)
        counts = tuple(tuple(float(value) for value in row) for row in rows)
        return Routing(kind="counts", counts=counts, source="drifted")

    def _inclusion(self, position: int) -> FloatArray:
        """Share of the tokens that each expert gets [layers, experts], for the layers that routing distinguishes."""
        bank = make_bank(self.moe, self._routing(position), self.layout.model.num_moe_layers, self.layout.seed)
        return bank.inclusion[np.arange(len(self.maps[0])) % len(bank.inclusion)]

    def _cost(self, position: int, number: int) -> _Costed:
        known = self.costed.get((position, number))
        if known is None:
            known = _cost_state(self.layout, self._routing(position), self.maps[number], self.tokens)
            self.costed[position, number] = known
        return known


def make_course(layout: Layout, largest_group_tokens: int) -> Course | None:
    """The course of a lockstep group; None where nothing changes (no balancing and no drift, or one rank)."""
    deployment, moe = layout.deployment, layout.model.moe
    if moe is None or deployment.expert_parallel_size == 1:
        return None
    if deployment.eplb is None and not layout.routing.drift_steps:
        return None
    rng = np.random.default_rng([layout.seed, 0xEB1B])
    all_layers = layout.model.num_moe_layers
    layers = len(make_bank(moe, layout.routing, all_layers, layout.seed).inclusion)
    start = _log_popularity(layout.routing, moe, all_layers, np.random.default_rng([layout.seed, 0x10AD]))
    turn = _log_popularity(layout.routing, moe, all_layers, rng)
    tokens = np.unique(np.geomspace(1, max(largest_group_tokens, 2), _SIZES).round())
    own = deployed_map(moe, layout.routing, expert_layout(deployment), all_layers, layout.seed)[:layers]
    first = _initial_map(layout, moe, layers) if deployment.eplb is not None and not deployment.placement else own
    static = _cost_state(layout, layout.routing, own, tokens).seconds
    return Course(layout, moe, start[:layers], turn[:layers], tokens, rng, [first], static)


def _initial_map(layout: Layout, moe: MixtureOfExperts, layers: int) -> IntArray:
    """The map before the first rearrangement: linear or round-robin, redundant slots repeating the first experts."""
    deployment = layout.deployment
    make = round_robin if deployment.expert_map == "round_robin" else linear
    slots = moe.num_experts + deployment.redundant_experts
    return np.tile(make(moe.num_experts, slots, deployment.expert_parallel_size), (layers, 1))


def _log_popularity(routing: Routing, moe: MixtureOfExperts, layers: int, rng: np.random.Generator) -> FloatArray:
    return np.log(np.maximum(popularity(routing, moe, layers, rng), 1e-12))


def _position(step: int, drift_steps: int) -> int:
    """Eighths of the way at `step`: there in `drift_steps` steps, and back."""
    if not drift_steps:
        return 0
    way = step / drift_steps % 2
    return math.floor((1 - abs(way - 1)) * _POSITIONS + 0.5)


def _cost_state(layout: Layout, routing: Routing, physical: IntArray, tokens: FloatArray) -> _Costed:
    """Routed experts and exchange of a step over all MoE layers under one popularity and one map."""
    moe = layout.model.moe
    assert moe is not None
    deployment = msgspec.structs.replace(
        layout.deployment, placement=tuple(tuple(int(expert) for expert in row) for row in physical), eplb=None
    )
    state = make_layout(layout.model, deployment, layout.cluster, layout.parameters, routing, layout.seed)
    sizes = tokens.astype(np.int64)
    experts = routed_experts(state, sizes).slowest.seconds
    exchange = expert_exchange(state, np.maximum(tokens / deployment.lockstep_ranks, 1.0)).seconds
    layers = layout.model.num_moe_layers
    placed = expert_layout(deployment)
    drawn = rank_loads(moe, routing, layers, layout.seed, tuple(int(size) for size in sizes), placed)
    return _Costed((experts + exchange) * layers, max_over_mean(drawn.rows).mean(axis=1))
