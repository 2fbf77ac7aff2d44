"""What a training prints of its steps and epochs."""

from __future__ import annotations

from typing import Any

import pytest

from awtpn.learning.settings import TERMS
from awtpn.tracking.log_lines import LINES, LossMeans, StepLines, epoch_line, epochs_per_line

VALIDATION = {"cross-entropy": 0.61234, "w-F1": 0.77123, "w-ACC": 0.775}


def line(step: int, loss: float | None = 1.0) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {"step": step, "epoch": step // 100, "lr": 1e-3, "loss": loss} | dict.fromkeys(TERMS, 0.5)


def test_a_step_line_comes_at_first_and_then_every_half_minute() -> None:
    now = 0.0
    lines = StepLines(total_steps=1_200, clock=lambda: now)
    told = []
    for step in range(1, 1_001):
        now += 0.125
        lines.add(line(step, loss=2.0 if step == 251 else 1.0), utterances=4)
        if step % 10 == 0:
            told += [lines.next(seconds=1.0)]  # the rest of the time validates and saves
    terms = "align 0.500 intra 0.500 inter 0.500 contrast 0.500 ce 0.500 mse 0.500"
    assert [text for text in told if text] == [
        f"step 10/1,200 (epoch 1): loss 1.0000 ({terms}), lr 0.001, 40 utterances/s, 0:01:59 left",
        f"step 250/1,200 (epoch 3): loss 1.0000 ({terms}), lr 0.001, 40 utterances/s, 0:01:59 left",
        f"step 490/1,200 (epoch 5): loss 1.0042 ({terms}), lr 0.001, 40 utterances/s, 0:01:29 left",
        f"step 730/1,200 (epoch 8): loss 1.0000 ({terms}), lr 0.001, 40 utterances/s, 0:00:59 left",
        f"step 970/1,200 (epoch 10): loss 1.0000 ({terms}), lr 0.001, 40 utterances/s, 0:00:29 left",
    ]
    assert told[0], "a user sees at once that it trains"


def test_steps_weigh_as_many_utterances_as_they_have() -> None:
    means = LossMeans()
    means.add(line(1, loss=1.0), utterances=30)
    means.add(line(2, loss=4.0), utterances=10)
    assert means.means() == pytest.approx({"loss": 1.75} | dict.fromkeys(TERMS, 0.5))


def test_a_step_that_is_not_finite_leaves_the_means_as_they_are() -> None:
    means = LossMeans()
    means.add(line(1, loss=None), utterances=10)
    assert str(means) == "loss not finite"
    assert means.means() == {}
    means.add(line(2) | {"inter": None}, utterances=10)
    means.add(line(3, loss=3.0), utterances=5)
    assert means.means()["loss"] == 3.0
    assert (means.steps, means.utterances) == (3, 25)


def test_a_run_of_many_epochs_has_few_lines() -> None:
    for epochs in range(1, 1_000):
        lines = epochs // epochs_per_line(epochs)
        assert lines == epochs if epochs < 2 * LINES else LINES <= lines < 2 * LINES


def test_an_epoch_line_tells_losses_metrics_and_time() -> None:
    means = LossMeans()
    means.add(line(1), utterances=10)
    losses = str(means)
    validated = "val cross-entropy 0.6123, w-F1 0.7712, accuracy (w-ACC) 0.7750"
    assert epoch_line(2, 10, means, False, VALIDATION, True, 12.34) == (
        f"epoch 3/10: train {losses}, {validated} *, 12.3 s"
    )
    assert epoch_line(2, 10, means, False, VALIDATION, False, 3723.0) == (
        f"epoch 3/10: train {losses}, {validated}, 1:02:03"
    )
    assert epoch_line(2, 10, means, True, None, True, 1.0) == (
        f"epoch 3/10: train {losses} over its last 1 step, 1.0 s"
    ), "without validation data there is nothing to be the best by"
    assert epoch_line(2, 10, LossMeans(), True, VALIDATION, True, 1.0) == f"epoch 3/10: {validated} *, 1.0 s"


def test_the_metric_of_the_best_model_is_shown_last() -> None:
    further = VALIDATION | {"UA": 0.5}
    end = "w-F1 0.7712, accuracy (w-ACC) 0.7750"
    for best_by, shown in (("w-F1", end), ("", end), ("UA", f"{end}, UA 0.5000")):
        text = epoch_line(0, 1, LossMeans(), False, further, True, 1.0, best_by)
        assert text == f"epoch 1/1: val cross-entropy 0.6123, {shown} *, 1.0 s"


@pytest.mark.parametrize(
    ("figures", "best_by", "shown"),
    [
        (
            {"task": "regression", "MAE": 0.5, "Corr": None, "CCC": -0.25},
            "MAE",
            "val MAE 0.5000, Corr undefined, CCC -0.2500",
        ),
        (
            {"task": "regression", "MAE": 0.5, "Corr": 0.1, "CCC": 0.2, "Acc-7": None},
            "Acc-7",
            "val MAE 0.5000, Corr 0.1000, CCC 0.2000, Acc-7 undefined",
        ),
        (
            {"task": "multilabel", "cross-entropy": 0.75, "F1": None, "WA": None, "mAP": 0.5},
            "mAP",
            "val cross-entropy 0.7500, F1 undefined, WA undefined, mAP 0.5000",
        ),
    ],
)
def test_each_task_has_its_metrics(figures: dict[str, Any], best_by: str, shown: str) -> None:
    text = epoch_line(0, 2, LossMeans(), False, figures, False, 1.0, best_by)
    assert text == f"epoch 1/2: {shown}, 1.0 s"
