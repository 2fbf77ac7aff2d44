"""The loss terms of tasks without classes: of several labels at once, and of values (regression).

Each is a mean over the utterances whose value is known, of each label or dimension by itself, and then over
labels or dimensions. `losses` holds the terms of classification under the same names:

- align: as Eq. 9, in each group of prototypes: the distance of a step to the states of its utterance. A value
  between two levels belongs to both, so its distance is the weighted mean of both.
- ce: multilabel: the binary cross-entropy of each label. regression: the cross-entropy between the shares of
  the levels and the softmax over their logits; 0 with head "linear", which has no logits of levels.
- mse: multilabel: the squared error of each label's probability. regression: the error of the value in
  eighths of its range, squared or (`loss.value_error: absolute`) not.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from awtpn.learning.loss_inputs import LossInputs
from awtpn.learning.settings import LossConfig
from awtpn.learning.targets import TargetCounts
from awtpn.model.device import to_device_async
from awtpn.model.segments import segment_mean
from awtpn.model.task import Task, predicted_units, units_of_values

Values = NDArray[np.float64]

# Units of the error of values in half of a range. With 1, `loss.eta_mse` 0.5 hardly counts beside the other
# terms, and in a short run predictions stay near the middle of the range. Chosen by measurement: see
# tests/benchmarks/results/targets-2026-11-29.md.
UNITS = 4


def align_to_states(inputs: LossInputs) -> Tensor:
    """Distance of the time steps to the prototypes of the utterance's states (Eq. 9, in each group)."""
    config, _, _, counts = _of(inputs)
    states, shares = inputs.states, []
    for modality, stream in inputs.output.streams.items():
        of_state = stream.distances.unflatten(1, states.shape[1:])
        if config.align_form == "prototypical":
            of_state = -torch.log_softmax(-config.tau * of_state, dim=-1)
        at_truth = (of_state * states.to(of_state.dtype)[stream.utterance]).sum(-1)  # [T, K]
        means = segment_mean(at_truth, stream.offsets, stream.utterance)
        shares.append(_mean(means, counts.known_with[modality]))
    return torch.stack(shares).sum()


def ce_of_values(inputs: LossInputs) -> Tensor:
    """Cross-entropy of the labels, or of the levels."""
    _, task, values, counts = _of(inputs)
    logits = inputs.output.logits
    if task.type == "multilabel":
        return _binary_cross_entropy(logits, values, inputs, counts.weight)
    if task.head == "linear":
        return logits.new_zeros(())
    states = inputs.states.to(logits.dtype)
    of_level = -torch.log_softmax(logits.unflatten(1, states.shape[1:]), dim=-1)
    return _mean((states * of_level).sum(-1), counts.known)


def _binary_cross_entropy(logits: Tensor, values: Tensor, inputs: LossInputs, weight: Values) -> Tensor:
    """Of each label, with class weights, focal factor and label smoothing; `weight` [K]: sum of weights."""
    config, known = inputs.config, ~values.isnan()
    present = (values > 0).to(logits.dtype)
    smooth = present * (1 - config.label_smoothing) + config.label_smoothing / 2
    entropy = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    if config.focal_gamma:
        against = torch.where(present > 0, -logits, logits)
        entropy = entropy * focal_factor(F.logsigmoid(against), config.focal_gamma)
    if inputs.class_weights is not None:
        absence, presence = inputs.class_weights.to(logits.dtype).T
        entropy = entropy * torch.where(present > 0, presence, absence)
    return _mean(torch.where(known, entropy, 0.0), weight)


def focal_factor(log_wrong: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma from log(1 - p), where p is the probability of the truth (Lin et al., 2017).

    Where p rounds to 1, the power of 1 - p = 0 would have no gradient: NaN for gamma < 1.
    """
    return (gamma * log_wrong).exp()


def error_of_values(inputs: LossInputs) -> Tensor:
    """Error of the labels' probabilities, or of the values in eighths of their range."""
    config, task, values, counts = _of(inputs)
    logits, known = inputs.output.logits, ~values.isnan()
    if task.type == "multilabel":
        error = logits.sigmoid() - (values > 0).to(logits.dtype)
    else:
        # Zeros for NaN: behind `where`, the gradient of a NaN would still be NaN.
        truth = units_of_values(values, task).nan_to_num(0.0).to(logits.dtype)
        error = UNITS * (predicted_units(logits, task) - truth)
    sizes = error.abs() if task.type == "regression" and config.value_error == "absolute" else error.square()
    return _mean(torch.where(known, sizes, 0.0), counts.known)


def _of(inputs: LossInputs) -> tuple[LossConfig, Task, Tensor, TargetCounts]:
    task, values, counts = inputs.task, inputs.values, inputs.normalizers.targets
    assert task is not None
    assert values is not None
    assert counts is not None
    return inputs.config, task, values, counts


def _mean(of_utterance: Tensor, count: Values) -> Tensor:
    """This micro-batch's share of the mean over utterances, then over K: [B, K] and the counts [K] -> scalar.

    A count may be 0, where nothing is added.
    """
    counts = np.asarray(count, np.float64)
    shares = np.divide(1 / len(counts), counts, out=np.zeros_like(counts), where=counts > 0)
    on_device = to_device_async(shares, of_utterance.device, of_utterance.dtype)
    return (of_utterance.sum(0) * on_device).sum()
