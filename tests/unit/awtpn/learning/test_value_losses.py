"""The loss terms of labels and values, against plain formulas for each utterance; and those of classes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import ALONE, CLASSES, DIMS, batch, utterances
from torch import Tensor

from awtpn.distributed.batch_layout import Layout
from awtpn.learning.loss_inputs import LossInputs, LossNormalizers
from awtpn.learning.losses import ce, loss_terms, total_loss
from awtpn.learning.settings import TERMS, LossConfig
from awtpn.learning.targets import TargetCounts
from awtpn.model.network import AWTPN, ModelOutput
from awtpn.model.settings import ModelConfig, TaskConfig
from awtpn.model.task import Task, level_values, predicted_values
from awtpn.training.global_batch import GlobalBatchInfo, micro_batch_losses, reduce_batch_counts
from shards import FeatureBatch

NAN = math.nan
LENGTHS = [(4, 3), (1, 6), (5, 0), (2, 2), (0, 4), (3, 3), (2, 1), (1, 1)]
VALUES = [[-3, 1], [0.5, NAN], [2.25, 4], [NAN, 2], [3, 5], [-1, NAN], [0, 3], [1, 1]]
PRESENT = [[0, 1], [1, NAN], [2.5, 0], [NAN, 0], [0, 0], [0, 3], [1, 1], [0, 0]]
LEVELS = Task("regression", ["valence", "activation"], [[-3, 3], [1, 5]], levels=5)
LINEAR = replace(LEVELS, head="linear")
LABELS = Task("multilabel", ["happy", "sad"])
CASES = [(LEVELS, VALUES), (LINEAR, VALUES), (LABELS, PRESENT)]


def model_of(task: Task) -> AWTPN:
    torch.manual_seed(3)
    model = AWTPN(ModelConfig(shared_dim=8, dropout=0.0), DIMS, [], task=task).double()
    with torch.no_grad():
        model.tpn.prototypes.copy_(torch.randn(model.tpn.prototypes.shape))
    return model


def batch_of(values: list[list[float]]) -> FeatureBatch:
    target = torch.tensor(values, dtype=torch.float64)
    return replace(batch(utterances(LENGTHS), [0] * 8), target=target, host_target=target)


def counted(whole: FeatureBatch, task: Task, config: LossConfig, weights: Any = None) -> GlobalBatchInfo:
    return reduce_batch_counts(
        whole,
        config,
        ALONE,
        task=task,
        class_weights=weights,
        modalities=list(DIMS),
        layout=Layout(8, 8, 1),
        seed=1,
        step=2,
        stop=False,
    )


def terms_of(
    task: Task, values: list[list[float]], config: LossConfig, weights: Any = None
) -> tuple[dict[str, float], AWTPN, FeatureBatch]:
    model, whole = model_of(task), batch_of(values)
    info = counted(whole, task, config, weights)
    given = None if weights is None else torch.from_numpy(weights)
    terms = micro_batch_losses(model(whole.features), whole, range(len(whole)), info, config, given, 8, task)
    total_loss(terms, config).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    return dict(zip(TERMS, terms.tolist(), strict=True)), model, whole


def shares(task: Task, k: int, value: float) -> list[float]:
    """How much each state of a group belongs to a value, in a plain loop."""
    if task.type == "multilabel":
        return [float(value <= 0), float(value > 0)]
    levels = level_values(task)[k].tolist()
    gap = levels[1] - levels[0]
    return [max(0.0, 1 - abs(value - level) / gap) for level in levels]


@pytest.mark.parametrize(("task", "values"), CASES)
@pytest.mark.parametrize("form", ["prototypical", "reference"])
def test_align_is_a_plain_loop_over_steps_and_groups(task: Task, values: Any, form: Any) -> None:
    config = LossConfig(align_form=form, tau=0.7)
    found, model, whole = terms_of(task, values, config)
    output, size = model(whole.features), task.group_sizes[0]
    expected = 0.0
    for stream in output.streams.values():
        for k in range(2):
            of_utterance = []
            for u in range(8):
                steps = stream.distances[stream.offsets[u] : stream.offsets[u + 1], k * size : (k + 1) * size]
                if len(steps) and not math.isnan(values[u][k]):
                    of_state = steps if form == "reference" else -torch.log_softmax(-0.7 * steps, -1)
                    share = torch.tensor(shares(task, k, values[u][k]), dtype=torch.float64)
                    of_utterance.append((of_state @ share).mean().item())
            expected += float(np.mean(of_utterance)) / 2
    assert found["align"] == pytest.approx(expected, rel=1e-9)


def test_the_error_of_values_is_in_eighths_of_the_range() -> None:
    for task in (LEVELS, LINEAR):
        for form, size in (("squared", lambda e: e**2), ("absolute", abs)):
            found, model, whole = terms_of(task, VALUES, LossConfig(value_error=form))  # type: ignore[arg-type]
            predicted = predicted_values(model(whole.features).logits, task).tolist()
            means = [
                np.mean(
                    [
                        size((p[k] - v[k]) / eighth)
                        for p, v in zip(predicted, VALUES, strict=True)
                        if v[k] == v[k]
                    ]
                )
                for k, eighth in ((0, 6 / 8), (1, 4 / 8))
            ]
            assert found["mse"] == pytest.approx(np.mean(means), rel=1e-9)


def test_the_cross_entropy_of_levels() -> None:
    found, model, whole = terms_of(LEVELS, VALUES, LossConfig())
    logits = model(whole.features).logits.view(8, 2, 5)
    means = []
    for k in range(2):
        of = [
            -float(
                torch.log_softmax(logits[u, k], -1)
                @ torch.tensor(shares(LEVELS, k, VALUES[u][k]), dtype=torch.float64)
            )
            for u in range(8)
            if VALUES[u][k] == VALUES[u][k]
        ]
        means.append(np.mean(of))
    assert found["ce"] == pytest.approx(np.mean(means), rel=1e-9)
    assert terms_of(LINEAR, VALUES, LossConfig())[0]["ce"] == 0


@pytest.mark.parametrize("weights", [None, np.array([[0.5, 2.0], [1.0, 4.0]])])
@pytest.mark.parametrize(("gamma", "smoothing"), [(0.0, 0.0), (2.0, 0.0), (0.0, 0.2), (1.5, 0.1)])
def test_the_cross_entropy_of_labels(weights: Any, gamma: float, smoothing: float) -> None:
    config = LossConfig(focal_gamma=gamma, label_smoothing=smoothing)
    found, model, whole = terms_of(LABELS, PRESENT, config, weights)
    p = model(whole.features).logits.sigmoid().tolist()
    means, squares = [], []
    for k in range(2):
        total = weight = square = count = 0.0
        for u in range(8):
            if math.isnan(PRESENT[u][k]):
                continue
            y = PRESENT[u][k] > 0
            soft = (1 - smoothing) * y + smoothing / 2
            entropy = -soft * math.log(p[u][k]) - (1 - soft) * math.log(1 - p[u][k])
            w = 1.0 if weights is None else weights[k, int(y)]
            at_truth = p[u][k] if y else 1 - p[u][k]
            total += w * (1 - at_truth) ** gamma * entropy
            weight, square, count = weight + w, square + (p[u][k] - y) ** 2, count + 1
        means.append(total / weight)
        squares.append(square / count)
    assert found["ce"] == pytest.approx(np.mean(means), rel=1e-9)
    assert found["mse"] == pytest.approx(np.mean(squares), rel=1e-9)


@pytest.mark.parametrize(("task", "values"), CASES)
def test_micro_batches_add_up(task: Task, values: Any) -> None:
    config = LossConfig(negative_group=2)
    whole, model = batch_of(values), model_of(task)
    info = counted(whole, task, config)

    def terms(micro: FeatureBatch, first: int) -> Tensor:
        return micro_batch_losses(
            model(micro.features), micro, range(first, first + len(micro)), info, config, None, 8, task
        ).detach()

    parts = [terms(micro, 2 * i) for i, micro in enumerate(whole.split(4))]
    torch.testing.assert_close(torch.stack(parts).sum(0), terms(whole, 0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("task", "values"), CASES)
def test_a_dimension_that_nobody_has_adds_nothing(task: Task, values: Any) -> None:
    unknown = [[first, NAN] for first, _ in values]
    found, _, _ = terms_of(task, unknown, LossConfig())
    assert all(math.isfinite(value) for value in found.values())
    assert found["align"] > 0


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("logit", [20.0, 500.0])
def test_the_gradient_of_a_sure_and_right_prediction_is_finite(gamma: float, logit: float) -> None:
    """In float32 its probability is 1, and a power of 1 - p below 1 has no finite gradient there."""
    config = LossConfig(focal_gamma=gamma)
    for task, values in ((LABELS, [[1.0, 0.0]]), (Task("classification", CLASSES), [[]])):
        right = torch.tensor([[logit, -logit, -logit][: task.outputs]], requires_grad=True)
        target = torch.tensor(values, dtype=torch.float64)
        normalizers = LossNormalizers(1, {}, {}, {}, 1, TargetCounts(np.ones(2), np.ones(2), {}))
        inputs = LossInputs(
            ModelOutput(right, {}), torch.tensor([0]), {}, normalizers, config, None, task, target
        )
        loss = ce(inputs)
        loss.backward()
        assert loss.item() == pytest.approx(0, abs=1e-8)
        assert right.grad is not None
        assert right.grad.abs().max() < 1e-6


@pytest.mark.parametrize(("gamma", "smoothing"), [(0.0, 0.1), (2.0, 0.0), (2.0, 0.1)])
def test_focal_loss_and_smoothing_of_classes(gamma: float, smoothing: float) -> None:
    logits, label = torch.randn(9, 3, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])
    weights = torch.tensor([0.6, 1.5, 1.5], dtype=torch.float64)
    model = AWTPN(ModelConfig(shared_dim=8, dropout=0.0), DIMS, ["a", "b", "c"]).double()
    whole = batch(utterances([(1, 1)] * 9), label.tolist())
    config = LossConfig(focal_gamma=gamma, label_smoothing=smoothing)
    output = replace(model(whole.features), logits=logits)
    ones = LossNormalizers(9, {"audio": 9, "video": 9}, {}, {}, float(weights[label].sum()))
    found = loss_terms(output, label, {}, ones, config, weights)[list(TERMS).index("ce")]
    expected = 0.0
    for row, truth in zip(logits, label.tolist(), strict=True):
        log_p = F.log_softmax(row, -1)
        soft = torch.full((3,), smoothing / 3, dtype=torch.float64)
        soft[truth] += 1 - smoothing
        expected += float(-(weights * soft * log_p).sum() * (1 - log_p[truth].exp()) ** gamma)
    assert float(found) == pytest.approx(expected / float(weights[label].sum()), rel=1e-12)


def test_settings_of_another_task_are_refused() -> None:
    for given, task, key in (
        (LossConfig(focal_gamma=1.0), "regression", "loss.focal_gamma"),
        (LossConfig(label_smoothing=0.1), "regression", "loss.label_smoothing"),
        (LossConfig(class_weights="balanced"), "regression", "loss.class_weights"),
        (LossConfig(value_error="absolute"), "multilabel", "loss.value_error"),
        (LossConfig(value_error="absolute"), "classification", "loss.value_error"),
    ):
        with pytest.raises(ValueError, match=key):
            given.check_task(task)
        LossConfig().check_task(task)
    for setting, key in ((TaskConfig(levels=5), "task.levels"), (TaskConfig(head="linear"), "task.head")):
        setting.check_task("regression")
        for task in ("classification", "multilabel"):
            TaskConfig().check_task(task)
            with pytest.raises(ValueError, match=f"{key} is for regression: set it to (7|levels) for {task}"):
                setting.check_task(task)
