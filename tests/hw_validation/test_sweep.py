from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any, cast

import pytest

from hw_validation import vllm_sweep
from hw_validation.engine import TracedEngine
from hw_validation.plan import DecodePoint, plan_points
from hw_validation.records import RecordLog, read_records
from hw_validation.vllm_sweep import Sweep, main
from tests.hw_validation.fakes import LIMITS, FakeEngine

POINTS = plan_points(["decode", "prefill", "mixed", "closed", "open", "skew"], [64], LIMITS)


def sweep(engine: FakeEngine, path: Path, seconds: float = 60.0) -> Sweep:
    return Sweep(cast("TracedEngine", engine), RecordLog(path), time.perf_counter() + seconds)


def test_all_points_are_recorded_with_their_steps(tmp_path: Path) -> None:
    assert sweep(FakeEngine(), tmp_path / "runs.jsonl").run(POINTS)
    records = list(read_records(tmp_path / "runs.jsonl"))
    assert len(records) == len(POINTS)
    assert {record.kind for record in records} == {
        "decode_step",
        "prefill_step",
        "mixed_step",
        "closed_loop",
        "open_loop",
    }
    for record in records:
        columns: dict[str, list[Any]] = record.steps
        assert columns
        assert len({len(column) for column in columns.values()}) == 1


def test_second_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert sweep(FakeEngine(), path).run(POINTS[:3])
    path.write_bytes(path.read_bytes()[:-5])
    before = [record.date for record in read_records(path)]
    assert sweep(FakeEngine(), path).run(POINTS[:5])
    records = list(read_records(path))
    assert len(records) == 5
    assert [record.date for record in records[:2]] == before


def test_budget_stops_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    engine = FakeEngine()
    assert not sweep(engine, path, seconds=0.0).run(POINTS)
    assert list(read_records(path)) == [] if path.exists() else True
    assert not engine.busy


def test_budget_inside_a_point_keeps_the_points_before(tmp_path: Path) -> None:
    class SlowEngine(FakeEngine):
        def step(self) -> list[tuple[str, int, bool]]:
            if len(self._left) >= 2:
                time.sleep(0.05)
            return super().step()

    path = tmp_path / "runs.jsonl"
    assert not sweep(SlowEngine(), path, seconds=0.3).run(POINTS)
    assert [record.point["batch_size"] for record in read_records(path)] == [1]


def test_failing_point_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs.jsonl"
    decodes = plan_points(["decode"], [64], LIMITS)
    assert sweep(FakeEngine(fail_at_batch=3), path).run(decodes)
    assert len(list(read_records(path))) == len(decodes) - 1
    assert "decode/3x64/temperature1/spread0: failed" in capsys.readouterr().err


def test_skewed_points_redraw_the_routers(tmp_path: Path) -> None:
    engine = FakeEngine()
    points = plan_points(["decode", "skew", "greedy"], [64], LIMITS)
    sweep(engine, tmp_path / "runs.jsonl").run(points)
    skewed = [record for record in read_records(tmp_path / "runs.jsonl") if record.point["router_spread"]]
    assert skewed
    assert all(record.values["expert_load_gini"] == 1.0 for record in skewed)
    assert engine.spreads[-1] == 0.0
    assert engine.temperatures == {0.0, 1.0}


def test_routed_experts_are_counted_with_their_decode_steps(tmp_path: Path) -> None:
    points = [point for point in plan_points(["decode"], [64], LIMITS) if isinstance(point, DecodePoint)][:7]
    assert sweep(FakeEngine(routes=True), tmp_path / "runs.jsonl").run(list(points))
    for record in read_records(tmp_path / "runs.jsonl"):
        assert record.values["distinct_experts_mean"] == min(8, record.point["batch_size"])
        assert len(record.tables["routing_by_layer"]) == 2


def test_standby_prepares_and_leaves_when_nobody_says_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[str] = []
    monkeypatch.setattr(vllm_sweep, "prepare_engine", lambda settings, _: prepared.append(settings.model))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["--model", "mixtral-8x7b", "--out", str(tmp_path / "runs.jsonl"), "--standby"]) == 3
    assert prepared == ["mixtral-8x7b"]


def test_missing_vllm_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import vllm  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        code = main(["--model", "mixtral-8x7b", "--out", str(tmp_path / "runs.jsonl")])
        assert code == 2
        assert "error: vLLM cannot be imported" in capsys.readouterr().err
    else:
        pytest.skip("vLLM is installed here")
