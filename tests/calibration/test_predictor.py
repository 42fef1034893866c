"""The light predictor: its table is the command's, its answers fit, and regret is what it says it is."""

import time

import msgspec
import numpy as np
import pytest

from calibration.predict_command import answer
from calibration.predictor import (
    Predicted,
    best_choice,
    leave_one_model_out,
    predict,
    shipped_forest,
    train,
)
from calibration.strategy_grid import GPUS, HARDWARE, MODELS, choices_of, draw_questions, measured_points, simulate
from calibration.strategy_table import (
    FEATURES,
    MEASURED,
    SIMULATED,
    Choice,
    Point,
    Question,
    features,
    read_points,
    write_points,
)
from moesim.errors import InputError
from tests.calibration.samples import REFERENCE, needs
from tests.cli.conftest import run  # noqa: F401 (fixture)

ASKED = Question(model="mixtral-8x7b", hardware="a100-80gb", gpus=2, input_tokens=512, output_tokens=128)


def point(strategy, concurrency, rate, gap=10.0, question=ASKED, source="simulated"):
    tp, dp, ep = {"tp_only": (2, 1, 1), "dp_ep": (1, 2, 2), "ep_only": (2, 1, 2)}[strategy]
    choice = Choice(tp=tp, dp=dp, ep=ep, concurrency=concurrency)
    assert choice.strategy == strategy
    return Point(source=source, question=question, choice=choice, tokens_per_s=rate, tpot_ms=gap)


def test_the_shipped_table_is_what_the_command_simulates():
    """Some choices of the seeded draw, simulated anew, is the committed number to what the file keeps.

    Parameter sets move as calibration does, so the check is of kind and size: within a factor of three.
    """
    known = {(item.question, item.choice): item for item in read_points(SIMULATED)}
    questions = draw_questions(3, np.random.default_rng(0))
    checked = 0
    for question in questions:
        for choice in list(choices_of(question))[::7]:
            made = simulate(question, choice)
            assert (made is not None) == ((question, choice) in known)
            if made is not None:
                assert made.tokens_per_s == pytest.approx(known[question, choice].tokens_per_s, rel=2.0)
                checked += 1
    assert checked > 5


def test_the_draw_is_seeded_and_without_repeats():
    one, other = (draw_questions(50, np.random.default_rng(3)) for _ in range(2))
    assert one == other
    assert len(set(one)) == 50
    assert {item.model for item in one} <= set(MODELS)
    assert {item.hardware for item in one} <= set(HARDWARE)
    assert {item.gpus for item in one} <= set(GPUS)


def test_points_survive_the_disk_and_bad_lines_are_named(tmp_path):
    path = tmp_path / "points.csv"
    points = [point("tp_only", 4, 1234.5), point("dp_ep", 4, 1000.0, source="measured")]
    write_points(path, points)
    assert read_points(path) == points
    path.write_text(path.read_text().replace("1234.5", "-3"))
    with pytest.raises(InputError, match="line 2"):
        read_points(path)
    path.write_text(path.read_text().replace("mixtral-8x7b,a100-80gb,2", "mixtral-8x7b,a100-80gb,two"))
    with pytest.raises(InputError, match="line 2"):
        read_points(path)


def test_features_are_finite_and_named():
    for choice in choices_of(ASKED):
        found = features(ASKED, choice)
        assert len(found) == len(FEATURES)
        assert np.isfinite(found).all()


def test_the_choice_keeps_the_limit_where_one_can():
    fast = Predicted(Choice(tp=2, dp=1, ep=1, concurrency=1), 100.0, 10.0)
    full = Predicted(Choice(tp=2, dp=1, ep=1, concurrency=64), 900.0, 50.0)
    assert best_choice([fast, full]) is full
    assert best_choice([fast, full], 20.0) is fast
    assert best_choice([fast, full], 1.0) is fast


def test_regret_of_a_rule_that_is_always_right_and_of_one_that_is_always_wrong():
    """Two models that behave alike: expert parallelism gives twice as much. The forest learns it from the other one."""
    points = [
        point(strategy, load, rate * load**0.5, question=asked)
        for asked in (
            msgspec.structs.replace(ASKED, model=model, input_tokens=length)
            for model in ("mixtral-8x7b", "qwen1.5-moe-a2.7b")
            for length in (128, 256, 512, 1024)
        )
        for load in (1, 4, 16, 64)
        for strategy, rate in (("tp_only", 100.0), ("dp_ep", 200.0))
    ]
    regrets = {(item.task, item.chooser): item for item in leave_one_model_out(points)}
    assert regrets["strategy", "tensor parallel"].mean == pytest.approx(0.5)
    assert regrets["strategy", "tensor parallel"].best_found == 0.0
    assert regrets["strategy", "forest"].mean < 0.05
    assert regrets["strategy", "forest"].questions == 2 * 4 * 4


def test_forests_of_equal_points_are_equal():
    points = read_points(MEASURED)
    choices = [item.choice for item in points[:20]]
    one, other = (predict(train(points), points[0].question, choices) for _ in range(2))
    assert one == other


def test_the_shipped_forest_knows_its_table_and_is_quick():
    forest = shipped_forest()
    points = read_points(SIMULATED)[::50]
    begin = time.process_time()
    apart = [np.log(predict(forest, p.question, [p.choice])[0].tokens_per_s / p.tokens_per_s) for p in points]
    assert (time.process_time() - begin) / len(points) < 0.05
    assert np.median(np.abs(apart)) < 0.1


def test_answers_fit_in_memory_and_are_ordered():
    answers = answer("mixtral-8x7b", "a100-80gb", 2, (512, 128))
    rates = [item.tokens_per_s for item in answers]
    assert rates == sorted(rates, reverse=True)
    assert not any(item.choice.strategy == "colocate_single" for item in answers)
    limited = answer("mixtral-8x7b", "a100-80gb", 2, (512, 128), tpot_slo=30.0)
    assert limited[0].tpot_ms <= 30.0
    assert limited[0].tokens_per_s <= answers[0].tokens_per_s


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model mixtrel-8x7 --hardware a100-80gb --gpus 2", "mixtral-8x7b"),
        ("--model mixtral-8x7b --hardware a1000 --gpus 2", "a100"),
        ("--model mixtral-8x7b --hardware a100-80gb --gpus 0", "gpus"),
        ("--model deepseek-v3 --hardware a100-40gb --gpus 2", "does not fit"),
        ("--model mixtral-8x7b --hardware a100-80gb --gpus 2 --tpot-slo -1", "tpot_slo"),
    ],
)
def test_bad_words_end_with_two_and_one_line(run, words, message):  # noqa: F811
    found = run(f"predict-strategy {words}")
    assert found.code == 2
    assert message in found.err
    assert len(found.err.strip().splitlines()) == 1


def test_the_command_answers_in_json(run):  # noqa: F811
    found = run("predict-strategy --model olmoe-1b-7b --hardware h200 --gpus 2 --json")
    assert found.code == 0
    assert set(found.document[0]) >= {"strategy", "max_num_seqs", "output_tokens_per_s", "tpot_ms"}


@pytest.mark.reference
@needs(REFERENCE)
def test_the_measured_table_is_that_of_the_serving_runs():
    again = measured_points(REFERENCE / "seed_measurements" / "serving.csv")
    kept = read_points(MEASURED)
    assert [(item.question, item.choice) for item in again] == [(item.question, item.choice) for item in kept]
    assert [item.tokens_per_s for item in kept] == pytest.approx([item.tokens_per_s for item in again], rel=1e-4)
