"""The loss terms (Eq. 9-12, 23-25), a function each, and their weighted sum.

Every term is a mean over utterances of the *global* batch. A micro-batch computes its share: its sum divided
by a count over the whole global batch. Shares add up over micro-batches and ranks to exactly the loss that
one process with one big batch would have, whatever the layout and however many utterances miss a modality.
`align`, `ce` and `mse` are those of classification here; `value_losses` has them for the other tasks.

To add a term, give it a line in `settings.TERMS` and a weight in `LossConfig`, and write its function here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from awtpn.learning.loss_inputs import LossInputs, LossNormalizers, NegativePool, PairInputs
from awtpn.learning.settings import TERMS, LossConfig, Pair
from awtpn.learning.value_losses import align_to_states, ce_of_values, error_of_values, focal_factor
from awtpn.model.base import ModelOutput
from awtpn.model.device import to_device_async
from awtpn.model.segments import segment_mean
from awtpn.model.task import Task

LossTerm = Callable[[LossInputs], Tensor]
FUNCTIONS: dict[str, LossTerm] = {}


def loss_term(function: LossTerm) -> LossTerm:
    """Register a function under its name in TERMS; it returns the micro-batch's share, a scalar."""
    FUNCTIONS[function.__name__] = function
    return function


def loss_terms(
    output: ModelOutput,
    label: Tensor,
    pools: Mapping[Pair, NegativePool],
    normalizers: LossNormalizers,
    config: LossConfig,
    class_weights: Tensor | None = None,
    task: Task | None = None,
    values: Tensor | None = None,
    terms: Sequence[str] = tuple(TERMS),
) -> Tensor:
    """This micro-batch's shares of the `terms`; see `LossInputs` for the other arguments.

    Returns:
        [len(terms)] in their order, unweighted; add over micro-batches and ranks, then weigh them.
    """
    inputs = LossInputs(output, label, pools, normalizers, config, class_weights, task, values)
    return torch.stack([FUNCTIONS[name](inputs) for name in terms])


def total_loss(shares: Tensor, config: LossConfig, terms: Sequence[str] = tuple(TERMS)) -> Tensor:
    """The weighted sum of the shares [len(terms)] of `loss_terms` (Eq. 25)."""
    # Not a dot product, which autocast would take to half precision.
    return (shares * to_device_async(config.weights(terms), shares.device, shares.dtype)).sum()


# --- The terms -----------------------------------------------------------------------------------


@loss_term
def align(inputs: LossInputs) -> Tensor:
    """Distance of the time steps to the true class's prototype: mean over steps, then utterances (Eq. 9)."""
    if not inputs.has_classes:
        return align_to_states(inputs)
    config, present = inputs.config, inputs.normalizers.present
    shares = []
    for modality, stream in inputs.output.streams.items():
        if config.align_form == "reference":
            of_class = stream.distances
        else:
            of_class = -torch.log_softmax(-config.tau * stream.distances, dim=-1)
        at_truth = of_class.gather(1, inputs.label[stream.utterance][:, None])[:, 0]
        means = segment_mean(at_truth, stream.offsets, stream.utterance)
        shares.append(means.sum() / present[modality])
    return torch.stack(shares).sum()


@loss_term
def intra(inputs: LossInputs) -> Tensor:
    """1 - cos(a, v) of the means of an utterance's two modalities (Eq. 10), over all pairs of modalities."""
    return inputs.mean_over_pairs(lambda pair: _masked_sum(1 - pair.cosine, pair.both) / pair.count)


@loss_term
def inter(inputs: LossInputs) -> Tensor:
    """Hinge that ranks an utterance's own v above a negative's by cosine similarity (Eq. 11), as `intra`."""
    return inputs.mean_over_pairs(_inter_of_pair)


def _inter_of_pair(pair: PairInputs) -> Tensor:
    negative, valid = pair.negatives("inter")
    own, other = pair.cosine, F.cosine_similarity(pair.a.mean, negative, dim=-1)
    rank = own - other if pair.config.inter_form == "reference" else other - own
    hinge = F.relu(pair.config.margin_inter + rank)
    return _masked_sum(hinge, valid) / pair.negative_count["inter"]


@loss_term
def contrast(inputs: LossInputs) -> Tensor:
    """|a - v| for an utterance's own v, relu(m - |a - v|) for a negative's (Eq. 12), as `intra`."""
    return inputs.mean_over_pairs(_contrast_of_pair)


def _contrast_of_pair(pair: PairInputs) -> Tensor:
    negative, valid = pair.negatives("contrast")
    # vector_norm has gradient 0 at 0, where sqrt would have none.
    near = torch.linalg.vector_norm(pair.a.mean - pair.v.mean, dim=-1)
    far = F.relu(pair.config.margin_contrast - torch.linalg.vector_norm(pair.a.mean - negative, dim=-1))
    near_share = _masked_sum(near, pair.both) / pair.count
    return near_share + _masked_sum(far, valid) / pair.negative_count["contrast"]


@loss_term
def ce(inputs: LossInputs) -> Tensor:
    """Cross-entropy (Eq. 23), with class weights, label smoothing and focal factor where they are set.

    The focal factor of an utterance is (1 - p)^gamma, with p the probability of the true class (Lin et al.,
    2017, "Focal loss for dense object detection").
    """
    if not inputs.has_classes:
        return ce_of_values(inputs)
    logits, weights, config = inputs.output.logits, inputs.class_weights, inputs.config
    weights = None if weights is None else weights.to(logits.dtype)
    smoothing = config.label_smoothing
    if not config.focal_gamma:
        summed = F.cross_entropy(logits, inputs.label, weights, reduction="sum", label_smoothing=smoothing)
        return summed / inputs.normalizers.class_weight
    entropy = F.cross_entropy(logits, inputs.label, weights, reduction="none", label_smoothing=smoothing)
    others = logits.scatter(1, inputs.label[:, None], -math.inf)
    factor = focal_factor(others.logsumexp(-1) - logits.logsumexp(-1), config.focal_gamma)
    return (factor * entropy).sum() / inputs.normalizers.class_weight


@loss_term
def mse(inputs: LossInputs) -> Tensor:
    """Squared error of the class probabilities, over utterances and classes (Eq. 24)."""
    if not inputs.has_classes:
        return error_of_values(inputs)
    logits = inputs.output.logits
    onehot = F.one_hot(inputs.label, logits.shape[-1]).to(logits.dtype)
    squares = (logits.softmax(-1) - onehot).square().sum()
    return squares / (inputs.normalizers.utterances * logits.shape[-1])


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    # where, not a product: a masked NaN must not come back as NaN.
    return torch.where(mask, values, 0.0).sum()


assert FUNCTIONS.keys() == TERMS.keys(), (
    f"terms without a function in losses.py or a line in settings.TERMS: {FUNCTIONS.keys() ^ TERMS.keys()}"
)
