"""Points of step sweeps: which of their times tell of the GPU, and which points tell of nothing."""

import msgspec
import pytest

from calibration.readers import read_runs
from hw_validation.records import make_record
from tests.calibration.readers.test_records import FLAGS, setup, write

GPU = {"gpu_median_ms": 3.2, "gpu_p10_ms": 3.19, "gpu_p90_ms": 3.22}
TIMES = GPU | {"forward_median_ms": 3.0, "launch_median_ms": 1.5}
SIZES = {"decodes_mean": 64.0, "context_tokens_mean": 64 * 256.0}
PROMPT = {"prefill_tokens_mean": 256.0, "prefill_pairs_mean": 32896.0, "context_tokens_mean": 0.0}


def decode(key="d", mode="FULL", flags=FLAGS, context_len=256, batch_size=64, **change):
    point = {"batch_size": batch_size, "context_len": context_len, "router_spread": 0.0}
    steps = {"graph_mode": ["NONE", mode]}
    return make_record("decode_step", key, setup(flags=flags), point, values=TIMES | SIZES | change, steps=steps)


def read(tmp_path, *records):
    return read_runs(write(tmp_path / "r.jsonl", *records))


def test_a_replayed_step_tells_of_the_gpu_alone(tmp_path):
    ((run,), _) = read(tmp_path, decode())
    assert run.measured == {"step_forward_ms": 3.0, "step_gpu_ms": 3.2}


def test_a_replay_of_few_sequences_tells_of_the_host_that_starts_it(tmp_path):
    ((run,), _) = read(tmp_path, decode(batch_size=8))
    assert run.measured == {"step_forward_ms": 3.0, "step_gpu_ms": 3.2, "step_replay_ms": 1.5}
    ((run,), _) = read(tmp_path / "d", decode(batch_size=8, flags=FLAGS | {"data_parallel_size": 2, "gpus": 2}))
    assert "step_replay_ms" not in run.measured


def test_repeats_that_differ_were_decided_by_the_host(tmp_path):
    ((run,), _) = read(tmp_path, decode(gpu_median_ms=5.0, gpu_p10_ms=4.5, gpu_p90_ms=5.5))
    assert run.measured == {"step_forward_ms": 3.0}


def test_launches_count_where_no_graph_holds_them(tmp_path):
    ((run,), _) = read(tmp_path, decode(mode="NONE"))
    assert run.measured == {"step_gpu_ms": 3.2, "step_launch_ms": 1.5}


@pytest.mark.parametrize(("launch_ms", "noise"), [(1.5, 4.0), (2.95, 6.0)])
def test_a_prompt_weighs_less_and_least_when_it_waited_for_its_launches(tmp_path, launch_ms, noise):
    values = TIMES | PROMPT | {"launch_median_ms": launch_ms}
    record = make_record(
        "prefill_step", "p", setup(), {"num_prompts": 1, "prompt_tokens": 256}, values=values,
        steps={"graph_mode": ["PIECEWISE"]},
    )  # fmt: skip
    ((run,), _) = read(tmp_path, record)
    assert run.noise == noise


def test_prompts_whose_scores_were_read_from_wrong_places_hardly_count(tmp_path):
    """60 experts' scores are padded to 64, unless the engine was told to pack them."""
    values, point = TIMES | PROMPT, {"num_prompts": 1, "prompt_tokens": 256}
    noises = []
    for number, flags in enumerate((FLAGS, FLAGS | {"forced_routing": False})):
        about = setup(flags=flags, model="qwen1.5-moe-a2.7b", num_layers=24)
        steps = {"graph_mode": ["PIECEWISE"]}
        record = make_record("prefill_step", f"p{number}", about, point, values=values, steps=steps)
        noises.append(read(tmp_path / str(number), record)[0][0].noise)
    assert noises == [24.0, 4.0]


def test_steps_that_return_their_routing_are_no_times(tmp_path):
    runs, skipped = read(tmp_path, decode(flags=FLAGS | {"returns_routed_experts": True}))
    assert not runs
    assert "routing" in skipped[0].reason


def test_a_context_that_costs_less_than_its_reading_is_left_out(tmp_path):
    """64 x 1792 more tokens of OLMoE are 15 GB: 4.5 ms at the H100's peak."""
    longer = {"context_tokens_mean": 64 * 2048.0, "context_len": 2048}
    slow, fast = decode("slow", forward_median_ms=8.0, **longer), decode("fast", forward_median_ms=6.0, **longer)
    assert [run.id for run in read(tmp_path, decode(), slow)[0]] == ["boot/d", "boot/slow"]
    (tmp_path / "r.jsonl").unlink()
    runs, skipped = read(tmp_path, decode(), fast)
    assert [run.id for run in runs] == ["boot/d"]
    assert "alike" in skipped[0].reason


def test_points_that_lack_what_tells_contexts_apart_are_read_as_they_are(tmp_path):
    """A replayed step without its batch, context or forward time, and shards of a cache under tensor parallelism."""
    bare = make_record("decode_step", "bare", setup(), {"batch_size": 64}, values={"gpu_median_ms": 3.2},
                       steps={"graph_mode": ["FULL"]})  # fmt: skip
    sharded = FLAGS | {"tensor_parallel_size": 2, "gpus": 2}
    longer = {"context_tokens_mean": 64 * 2048.0, "context_len": 2048, "forward_median_ms": 6.0}
    runs, skipped = read(tmp_path, bare, decode("short", flags=sharded), decode("long", flags=sharded, **longer))
    assert [run.id for run in runs] == ["boot/short", "boot/long"]
    assert [item.id for item in skipped] == ["bare"]
    assert "step sweep" in skipped[0].reason


FORCED = {"router_spread": 1.2, "router_falling": True, "routing": "zipf:1.2"}


@pytest.mark.parametrize(
    ("flags", "point", "routing"),
    [
        ({"forced_routing": True}, {"router_spread": 0.0, "routing": "uniform"}, "uniform"),
        ({"forced_routing": True}, FORCED, "falling:1.2"),
        ({"forced_routing": True}, FORCED | {"router_falling": False}, None),
        ({"forced_routing": True, "enable_eplb": True}, FORCED, None),
        ({}, FORCED, None),
    ],
    ids=["uniform", "falling", "spread", "moved", "redrawn weights"],
)
def test_forced_routing_is_predicted_where_moesim_has_a_name_for_it(tmp_path, flags, point, routing):
    record = decode(flags=FLAGS | flags)
    record = msgspec.structs.replace(record, point=record.point | point)
    runs, skipped = read(tmp_path, record)
    assert [run.request.routing for run in runs] == ([routing] if routing else [])
    assert len(skipped) == (routing is None)


KERNELS = [
    ["fused_moe_kernel", 48.0, 6000.0],
    ["void vllm::moe::moe_align_block_size_kernel<int>", 24.0, 270.0],
    ["void vllm::moe::topkGating<8, 8>", 24.0, 50.0],
    ["flash::FlashAttnFwdSm90", 24.0, 1480.0],
    ["void vllm::reshape_and_cache_flash_kernel", 24.0, 60.0],
    ["nvjet_sm90_tst_64x8", 72.0, 1600.0],
]


def profile(key="k", **point):
    point = {"batch_size": 64, "context_len": 256, "prefill_tokens": 0} | point
    return make_record(
        "step_kernels", key, setup(), point, values={"kernel_busy_us": 9460.0}, tables={"kernels": KERNELS}
    )


def test_a_profile_tells_what_experts_and_attention_take(tmp_path):
    ((run,), _) = read(tmp_path, profile())
    assert run.measured == pytest.approx({"step_experts_ms": 6.27, "step_attention_ms": 1.54})
    assert run.step.decodes == 64
    assert run.step.context_tokens == pytest.approx(64 * 256, rel=0.03)
    _, (skipped,) = read(tmp_path, profile("p", batch_size=0, prefill_tokens=512))
    assert "profile of a prompt" in skipped.reason
