"""Any bytes in a file of measured runs give an InputError or valid runs, nothing else."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from calibration.readers import read_runs
from calibration.runs import MeasuredRun
from calibration.sources import Limits
from moesim.errors import InputError
from tests.calibration.damage import damaged
from tests.calibration.readers.test_llada import run as llada_run
from tests.calibration.readers.test_records import LOOP, MACHINE, VALUES, setup
from tests.calibration.readers.test_vllm_bench import SERVE

LIMITS = Limits(table_bytes=1 << 20, json_bytes=1 << 20, line_bytes=1 << 16, rows=1000)
WORDS = [
    b"nan",
    b".inf",
    b"-1",
    b"1e999",
    b"",
    b",",
    b'"',
    b"\n",
    b"null",
    b"[]",
    b"{}",
    b"9" * 30,
    b"\xff",
    b": ",
    b"&a [*a]",
    b"\0",
]
_OWN = (
    "schema_version: 1\nruns:\n  - id: a\n    engine: vllm\n    measured: {itl_p50_ms: 8.5}\n"
    "    request: {model: mixtral-8x7b, hardware: h100, gpus: 2}\n"
)
_SERVING = (
    "row_id,model,gpu_model,gpus_used,tp,dp,ep,input_tokens,output_tokens,max_concurrency,num_prompts,prefix_cache,"
    "exec_mode,flags,session,itl_p50_ms,output_tok_per_s\na,mixtral-8x7b,a100,2,2,1,1,512,128,8,64,cold,graph,,s1,9.5,800\n"
)


def _record() -> bytes:
    import msgspec

    from hw_validation.records import make_record

    assert MACHINE.gpu
    return msgspec.json.encode(make_record("closed_loop", "a", setup(), LOOP, values=VALUES)) + b"\n"


def _step() -> bytes:
    import msgspec

    from hw_validation.records import make_record

    point = {"batch_size": 4, "context_len": 256, "router_spread": 0.0}
    names = ("gpu_median_ms", "launch_median_ms", "context_tokens_mean", "prefill_tokens_mean", "prefill_pairs_mean")
    record = make_record("mixed_step", "d", setup(), point, values=dict.fromkeys(names, 1.5))
    return msgspec.json.encode(record) + b"\n"


SEEDS = {
    "own.yaml": _OWN.encode(),
    "serving.csv": _SERVING.encode(),
    "bench.json": json.dumps(SERVE | {"hardware": "h100", "tp": 2, "gpus": 2}).encode(),
    "llada.json": json.dumps({"schema": "moesim.llada/1", "records": [llada_run()]}).encode(),
    "log.jsonl": _record(),
}
DAMAGED = SEEDS | {"step.jsonl": _step()}
quick = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(path):
    try:
        runs, skipped = read_runs(path, LIMITS)
    except InputError as error:
        assert "\n" not in str(error).strip()
    else:
        assert all(isinstance(item, MeasuredRun) for item in runs)
        assert all(item.reason for item in skipped)


@quick
@pytest.mark.parametrize("suffix", [".yaml", ".json", ".jsonl", ".csv", ".parquet", ".json.gz", ".jsonl.gz"])
@given(content=st.binary(max_size=200))
def test_any_bytes(tmp_path, suffix, content):
    path = tmp_path / f"input{suffix}"
    path.write_bytes(content)
    check(path)


@quick
@pytest.mark.parametrize("name", sorted(DAMAGED))
@given(data=st.data())
def test_damaged_files(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(damaged(data, DAMAGED[name], WORDS))
    check(path)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_the_undamaged_files_hold_one_run(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(SEEDS[name])
    runs, skipped = read_runs(path, LIMITS)
    assert (len(runs), skipped) == (1, [])


@quick
@given(text=st.text(st.sampled_from("abc01: -&*!{}[]\n#'\"~.,?|>%@`"), max_size=60))
@example("!!python/object/apply:os.system ['true']")
@example("2001-99-99")
@example("a: &a [1]\nb: *a\n")
@example("? {}\n: 1")
def test_yaml_with_tags_aliases_and_odd_scalars(tmp_path, text):
    path = tmp_path / "input.yaml"
    path.write_text(text)
    check(path)


def test_yaml_whose_aliases_multiply_is_refused_at_once(tmp_path):
    path = tmp_path / "input.yaml"
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError):
        read_runs(path, LIMITS)


@pytest.mark.parametrize("suffix", [".yaml", ".json", ".jsonl"])
@pytest.mark.parametrize("depth", [300, 950, 5000, 100_000])
def test_deep_nesting_is_refused(tmp_path, suffix, depth):
    path = tmp_path / f"input{suffix}"
    path.write_text('{"schema_version": ' + "[" * depth + "]" * depth + "}\n")
    with pytest.raises(InputError):
        read_runs(path, Limits())


@pytest.mark.parametrize(
    ("suffix", "head"), [(".csv", b"row_id,itl_p50_ms\n1,"), (".jsonl", b"{"), (".json", b"{"), (".yaml", b"a: ")]
)
def test_a_gigabyte_in_one_line_is_refused(tmp_path, suffix, head):
    path = tmp_path / f"input{suffix}"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(1_100_000_000)
    with pytest.raises(InputError, match=r"longer than|larger than|too large"):
        read_runs(path)
