"""What every simulation must obey, whatever the model costs: conservation, causality, determinism, limits."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.engine.group import flatten
from moesim.engine.serving import run_serving
from moesim.simulation import simulate_scenario
from moesim.specs.hardware import Accelerator
from moesim.specs.scenario import Scenario
from moesim.specs.workload import AllAtOnce, ClosedLoop, OpenLoop, Trace, TraceRequest
from tests.engine.test_macro_steps import shrink_pool
from tests.scenarios import scenario


def with_load(built: Scenario, **fields: object) -> Scenario:
    return msgspec.structs.replace(built, workload=msgspec.structs.replace(built.workload, **fields))


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(["olmoe-1b-7b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b"]),
    arrival=st.one_of(
        st.builds(ClosedLoop, concurrency=st.integers(1, 30)),
        st.builds(OpenLoop, request_rate_per_s=st.floats(0.5, 300), burstiness=st.floats(0.3, 4)),
        st.just(AllAtOnce()),
    ),
    sizes=st.sampled_from([{"tp": 8}, {"tp": 1, "dp": 8, "ep": 8}, {"tp": 2, "dp": 4, "ep": 8}]),
    frontend=st.sampled_from(["server", "offline"]),
    lengths=st.tuples(st.integers(1, 600), st.integers(1, 60)),
    ratio=st.floats(0, 0.9),
    prompts=st.integers(1, 50),
    depth=st.sampled_from([1, 4, 64]),
    seed=st.integers(0, 1000),
)
def test_requests_and_tokens_are_conserved_in_causal_order(
    model, arrival, sizes, frontend, lengths, ratio, prompts, depth, seed
):
    built = scenario(
        model, "h200", gpus=8, input_len=lengths[0], output_len=lengths[1], max_num_seqs=depth, frontend=frontend,
        seed=seed, **sizes,
    )  # fmt: skip
    run = run_serving(with_load(built, arrival=arrival, num_prompts=prompts, range_ratio=ratio))
    assert len(run.requests) == prompts
    for request in run.requests:
        assert 0 <= request.sent_s <= request.ready_s < request.first_token_s <= request.last_token_s
        assert request.emitted == request.output_tokens
    gaps, tokens = flatten(run.logs)
    assert tokens.sum() == sum(request.output_tokens - 1 for request in run.requests)
    assert (gaps > 0).all()
    assert run.elapsed_s > 0
    assert 0 < run.peak_kv_blocks <= run.total_kv_blocks


@settings(max_examples=30, deadline=None)
@given(
    pool=st.integers(200, 1500),
    concurrency=st.integers(2, 30),
    shared=st.sampled_from([0, 32, 90]),
    chunk=st.sampled_from([32, 256]),
    seed=st.integers(0, 1000),
)
def test_blocks_come_back_and_preempted_requests_finish(pool, concurrency, shared, chunk, seed):
    """A pool far too small for the load: requests are preempted and recomputed, and every block is returned."""
    from moesim.engine.requests import make_requests
    from moesim.engine.serving import _Simulation, step_model_for
    from moesim.placement.fit import require_fit

    built = scenario(
        input_len=100, output_len=60, concurrency=concurrency, num_prompts=40, gpus=2, shared_prefix_len=shared,
        max_num_batched_tokens=chunk, max_num_seqs=16, seed=seed,
    )  # fmt: skip
    built = shrink_pool(built, pool, 162)
    table = make_requests(built.workload, np.random.default_rng(seed))
    memory = require_fit(built.model, built.deployment, built.cluster, table.longest)
    simulation = _Simulation(built, table, step_model_for(built, table), memory, True, False)
    run = simulation.run()
    for group in simulation._groups:
        for rank in group.ranks:
            rank._free_released()
            for _, done in rank._released:
                for request in done:
                    rank.pool.release(request)
            assert rank.pool.free == rank.pool.total
            assert not rank.running
            assert rank.decodes == rank.context == 0
            assert rank.phase == [0] * rank.pool.block_size
    assert all(request.emitted == request.output_tokens for request in run.requests)


def test_a_small_pool_preempts_and_costs_throughput():
    built = scenario(input_len=100, output_len=200, concurrency=16, num_prompts=64, gpus=2)
    ample, tight = simulate_scenario(built), simulate_scenario(shrink_pool(built, 1400, 302))
    assert ample.preemptions == 0
    assert tight.preemptions > 0
    assert tight.output_tokens_per_s < ample.output_tokens_per_s
    assert tight.peak_kv_share > 0.8


def test_same_seed_gives_the_same_bytes():
    built = scenario(input_len=100, output_len=30, request_rate=20, num_prompts=60, range_ratio=0.5, gpus=2)
    encode = msgspec.json.Encoder().encode
    first, second = (encode(simulate_scenario(built).to_dict()) for _ in range(2))
    assert first == second
    other = simulate_scenario(msgspec.structs.replace(built, seed=built.seed + 1)).to_dict()
    assert encode(other) != first


def faster(built: Scenario, **factors: float) -> Scenario:
    """The scenario on an accelerator whose fields are multiplied."""
    card: Accelerator = built.cluster.accelerator
    changed = msgspec.structs.replace(card, **{name: getattr(card, name) * by for name, by in factors.items()})
    return msgspec.structs.replace(built, cluster=msgspec.structs.replace(built.cluster, accelerator=changed))


@settings(max_examples=25, deadline=None)
@given(
    model=st.sampled_from(["mixtral-8x7b", "olmoe-1b-7b", "deepseek-v3", "llada-moe-7b"]),
    concurrency=st.sampled_from([1, 4, 32]),
    eager=st.booleans(),
    factor=st.floats(1.05, 3),
)
def test_more_bandwidth_is_never_slower(model, concurrency, eager, factor):
    built = scenario(
        model, gpus=8, tp=8, concurrency=concurrency, num_prompts=32, input_len=200, output_len=24,
        enforce_eager=eager, **({"generation_len": 32, "steps": 16} if model.startswith("llada") else {}),
    )  # fmt: skip
    base = simulate_scenario(built, intervals=False)
    quick = simulate_scenario(faster(built, hbm_bandwidth_bytes_per_s=factor), intervals=False)
    assert quick.duration_s <= base.duration_s * (1 + 1e-9)


def test_decode_throughput_grows_with_the_batch_and_latency_does_not_fall():
    results = [
        simulate_scenario(
            scenario(gpus=4, concurrency=n, num_prompts=4 * n, input_len=64, output_len=128, max_num_seqs=256)
        )
        for n in (1, 4, 16, 64, 256)
    ]
    rates = [result.output_tokens_per_s for result in results]
    steps = [result.itl_ms.p50 for result in results if result.itl_ms]
    assert rates == sorted(rates)
    assert steps == sorted(steps)


def single_token_server(rate: float, prompts: int, seed: int) -> Scenario:
    """Requests of one output token, one at a time: a queue whose service is one prefill step."""
    built = scenario(
        gpus=8, input_len=2000, output_len=1, max_num_seqs=1, max_num_batched_tokens=4096, request_rate=rate,
        num_prompts=prompts, frontend="offline", async_scheduling=False, seed=seed,
    )  # fmt: skip
    return msgspec.structs.replace(built, seed=seed)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_one_server_queues_like_m_d_1(load: float):
    """Mean wait of M/D/1: rho s / (2 (1 - rho)) (Pollaczek-Khinchine); the service time comes from an idle run."""
    lone = run_serving(single_token_server(1e-3, 200, 1)).requests
    service_s = float(np.mean([request.last_token_s - request.sent_s for request in lone]))
    run = run_serving(single_token_server(load / service_s, 20_000, 2)).requests
    waits = np.array([request.last_token_s - request.sent_s for request in run]) - service_s
    expected = load * service_s / (2 * (1 - load))
    assert waits.mean() == pytest.approx(expected, rel=0.12)
    assert waits.min() > -0.2 * service_s


def test_light_load_is_the_sum_of_its_steps():
    """Without queueing E2E = TTFT + (output - 1) TPOT, and Little's law holds."""
    result = simulate_scenario(scenario(gpus=2, request_rate=0.2, num_prompts=50, input_len=256, output_len=64))
    assert result.e2e_ms and result.ttft_ms and result.tpot_ms
    assert result.e2e_ms.mean == pytest.approx(result.ttft_ms.mean + 63 * result.tpot_ms.mean, rel=1e-6)


def test_closed_loop_keeps_its_concurrency():
    result = simulate_scenario(scenario(gpus=2, concurrency=12, num_prompts=1200, input_len=64, output_len=64))
    assert result.e2e_ms
    assert result.requests_per_s * result.e2e_ms.mean / 1e3 == pytest.approx(12, rel=0.02)
    assert result.mean_running <= 12


def test_open_loop_serves_what_arrives():
    result = simulate_scenario(scenario(gpus=8, request_rate=5, num_prompts=2000, input_len=64, output_len=16))
    assert result.requests_per_s == pytest.approx(5, rel=0.05)


def test_a_trace_is_served_in_its_own_time():
    requests = tuple(TraceRequest(arrival_s=10.0 * i, input_tokens=50 + i, output_tokens=5 + i) for i in range(8))
    built = with_load(scenario(gpus=2), arrival=Trace(requests=requests, source="test"), num_prompts=8)
    run = run_serving(built)
    assert [request.sent_s for request in run.requests] == [item.arrival_s for item in requests]
    assert [request.output_tokens for request in run.requests] == [item.output_tokens for item in requests]


def test_a_cached_prefix_spares_its_prefill():
    words = {"gpus": 2, "concurrency": 1, "num_prompts": 10, "input_len": 4000, "output_len": 4}
    cold = simulate_scenario(scenario(**words))
    warm = simulate_scenario(scenario(**words, cached_prefix_len=3900))
    shared = simulate_scenario(scenario(**words, shared_prefix_len=3900))
    off = simulate_scenario(scenario(**words, shared_prefix_len=3900, enable_prefix_caching=False))
    assert cold.ttft_ms and warm.ttft_ms and shared.ttft_ms and off.ttft_ms
    assert warm.ttft_ms.p50 < 0.5 * cold.ttft_ms.p50
    assert shared.ttft_ms.p50 == pytest.approx(warm.ttft_ms.p50, rel=0.05)
    assert off.ttft_ms.p50 == pytest.approx(cold.ttft_ms.p50, rel=1e-6)


def test_chunked_prefill_bounds_the_gap_of_its_neighbours():
    words = {"gpus": 2, "concurrency": 8, "num_prompts": 64, "input_len": 6000, "output_len": 64}
    whole = simulate_scenario(scenario(**words, max_num_batched_tokens=8192))
    chunked = simulate_scenario(scenario(**words, max_num_batched_tokens=512))
    assert whole.itl_ms and chunked.itl_ms
    assert chunked.itl_ms.p99 < 0.5 * whole.itl_ms.p99


def test_the_server_costs_what_offline_does_not():
    words = {"gpus": 2, "concurrency": 4, "num_prompts": 16, "input_len": 64, "output_len": 16}
    served = simulate_scenario(scenario(**words, frontend="server"))
    offline = simulate_scenario(scenario(**words, frontend="offline"))
    assert served.ttft_ms and offline.ttft_ms
    assert served.ttft_ms.mean > offline.ttft_ms.mean


def test_replicas_share_the_load_evenly():
    built = scenario(
        gpus=4, tp=1, dp=4, hardware="mi300x", concurrency=32, num_prompts=320, input_len=64, output_len=32
    )
    run = run_serving(built)
    counts = np.bincount([request.engine for request in run.requests], minlength=4)
    assert counts.min() > 0.8 * counts.max()
