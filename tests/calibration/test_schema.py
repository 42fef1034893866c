"""Measurements survive JSON, CSV and Parquet exactly, and runs survive the schema."""

import math

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibration.runs import MeasuredRun
from calibration.schema import Measurement, Provenance, from_run, to_run
from calibration.schema_files import load_measurements, save_measurements
from moesim.errors import InputError
from moesim.scenarios import Request

FORMATS = (".json", ".csv", ".parquet")
text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0\r"), max_size=12)
names = (
    st.text(st.characters(categories=("L", "N"), include_characters="_[]. :%"), min_size=1, max_size=10)
    .map(str.strip)
    .filter(bool)
)
numbers = st.floats(-1e59, 1e59, allow_nan=False)
whole = st.integers(-(2**63) + 1, 2**63 - 1)
documents = st.recursive(
    st.none() | st.booleans() | whole | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
measurements = st.builds(
    Measurement,
    id=text.filter(bool),
    kind=st.sampled_from(["serving", "operator", "collective", "counters", "decode_step"]),
    model=text,
    layers=st.none() | whole,
    weights=text,
    flags=st.dictionaries(text, documents, max_size=3),
    routing=text,
    point=st.dictionaries(names, documents, max_size=3),
    values=st.dictionaries(names, numbers, max_size=4),
    steps=st.dictionaries(text, st.lists(documents, max_size=3), max_size=2),
    tables=st.dictionaries(text, st.lists(documents, max_size=3), max_size=2),
    labels=st.lists(text, max_size=3).map(tuple),
    noise=numbers,
    provenance=st.builds(Provenance, file=text, sha256=text, place=text, date=text),
)
quick = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@quick
@pytest.mark.parametrize("suffix", FORMATS)
@given(items=st.lists(measurements, max_size=4))
def test_every_format_gives_back_what_was_saved(tmp_path, suffix, items):
    path = tmp_path / f"m{suffix}"
    save_measurements(path, items)
    assert load_measurements(path) == items


requests = st.builds(
    Request,
    model=st.sampled_from(["mixtral-8x7b", "dbrx"]),
    hardware=st.just("h100"),
    gpus=st.none() | st.integers(1, 64),
    request_rate=st.none() | st.just(math.inf) | st.floats(0.1, 100),
    concurrency=st.none() | st.integers(1, 512),
    routing=st.sampled_from(["uniform", "zipf:1.2"]),
    frontend=st.sampled_from([None, "offline", "server"]),
    generation_len=st.none() | st.just(128),
    enforce_eager=st.booleans(),
    engine_version=text,
)
runs = st.builds(
    MeasuredRun,
    id=text.filter(bool),
    engine=st.sampled_from(["vllm", "sglang", "llada"]),
    request=requests,
    measured=st.dictionaries(names, numbers, max_size=3),
    flags=st.lists(text, max_size=2).map(tuple),
    configuration=text,
    series=text,
    site=text,
    noise=st.floats(0.1, 10),
)


@quick
@pytest.mark.parametrize("suffix", FORMATS)
@given(run=runs)
def test_a_measured_run_survives_the_schema_and_the_file(tmp_path, suffix, run):
    path = tmp_path / f"m{suffix}"
    save_measurements(path, [from_run(run, Provenance(file="runs.csv", sha256="00", place="row 3"))])
    (item,) = load_measurements(path)
    assert to_run(item) == run
    assert item.provenance.place == "row 3"


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_not_finite_is_refused_and_nothing_is_written(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    save_measurements(path, [Measurement(id="good", kind="operator")])
    before = path.read_bytes()
    for bad in (
        {"values": {"time_us": math.nan}},
        {"point": {"a": [{"b": math.inf}]}},
        {"flags": {"x": 2**63}},
        {"id": ""},
    ):
        with pytest.raises(InputError):
            save_measurements(path, [msgspec.structs.replace(Measurement(id="bad", kind="operator"), **bad)])
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.json", b"{}", "schema is 'None'"),
        ("m.json", b'{"schema": "moesim.measurements/2", "measurements": []}', "must be 'moesim"),
        ("m.json", b'{"schema": "moesim.measurements/1", "measurements": [{"id": "a", "kind": "b"}]}', "kind"),
        ("m.json", b'{"schema": "moesim.measurements/1", "measurements": [], "x": 1}', "'x'"),
        ("m.csv", b"schema_version,id,kind\n1,a,operator,4\n", "line 2"),
        ("m.csv", b"schema_version,id,kind,value:t\n1,a,operator,nan\n", "value:t"),
        ("m.csv", b"schema_version,id,kind,flags\n1,a,operator,{\n", "flags is not valid JSON"),
        ("m.csv", b"schema_version,id,kind,unknown\n1,a,operator,1\n", "unknown"),
        ("m.csv", b"schema_version,id,kind\n7,a,operator\n", "schema_version is 7"),
        ("m.parquet", b"PAR1 not really PAR1", "no valid Parquet"),
        ("m.parquet", b"", "no valid Parquet"),
        ("m.txt", b"", "suffix"),
    ],
)
def test_wrong_files_name_the_place(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load_measurements(path)
    assert str(path) in str(caught.value)


def test_another_parquet_file_is_told(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "gemm.parquet"
    pq.write_table(pa.table({"m": [1], "latency": [2.0]}), path)
    with pytest.raises(InputError, match="no table of measurements"):
        load_measurements(path)


@quick
@pytest.mark.parametrize("suffix", FORMATS)
@given(data=st.data())
def test_damaged_files_give_an_input_error_or_valid_records(tmp_path, suffix, data):
    path = tmp_path / f"m{suffix}"
    save_measurements(
        path, [Measurement(id="a", kind="operator", values={"t_us": 1.5}, point={"rows": 8, "name": "x"})]
    )
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        words = st.sampled_from([b"nan", b"-1", b"1e999", b"", b",", b'"', b"\n", b"{}", b"\xff", b"null"]) | st.binary(
            max_size=3
        )
        content = content[:start] + data.draw(words) + content[start + data.draw(st.integers(0, 6)) :]
    path.write_bytes(content)
    try:
        found = load_measurements(path)
    except InputError as error:
        assert str(path) in str(error)
    else:
        save_measurements(path, found)
        assert load_measurements(path) == found
