"""Exact gradients of the cross-modal terms, where an utterance's negative may lie in another micro-batch.

The terms of Eq. 10-12 read nothing of the network but the mean over time of each modality of each utterance.
So a step goes over its micro-batches twice:

1. without gradients, it collects the means of the whole global batch (`collect_means`). Every rank computes
   the terms of the whole batch from them, and the gradient of their weighted sum with respect to each mean;
2. with gradients, it goes through the micro-batches as usual, and adds the product of each mean and its
   gradient to the loss (`HeldMeans.loss`). Backward then takes each mean's gradient into the network.

By the chain rule the gradients add up to those of one big batch. Both passes draw the same dropout. The first
pass keeps no activations: the memory is that of one micro-batch, and of one table of means. The idea is that
of gradient caching (Gao et al., 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from awtpn.learning.losses import NegativePool, loss_terms, total_loss
from awtpn.learning.negatives import DRAWS
from awtpn.learning.settings import CROSS_MODAL, LossConfig
from awtpn.model.base import ModalityOutput, ModelOutput
from awtpn.model.device import to_device_async
from awtpn.training.global_batch import GlobalBatchInfo
from shards import FeatureBatch


@dataclass(frozen=True)
class HeldMeans:
    """The cross-modal terms of a whole global batch, and what they pass back to its means.

    Attributes:
        terms: [len(CROSS_MODAL)] of the whole batch, unweighted, in the order of CROSS_MODAL.
        gradients: per modality [G, D], of their weighted sum with respect to the mean at each place.
    """

    terms: Tensor
    gradients: dict[str, Tensor]

    def terms_in(self, names: Sequence[str]) -> Tensor:
        """The terms [len(names)] in the places of their names; 0 at those of other terms."""
        zero = self.terms.new_zeros(())
        return torch.stack([self.terms[CROSS_MODAL.index(n)] if n in CROSS_MODAL else zero for n in names])

    def loss(self, output: ModelOutput, micro: FeatureBatch) -> Tensor:
        """What to add to a micro-batch's loss; its gradient, not its value, is that of the cross-modal terms.

        Args:
            output: of the micro-batch's utterances, in training.
        """
        shares = []
        for modality, gradient in self.gradients.items():
            rows = to_device_async(micro.place.numpy(), gradient.device)
            shares.append((output.streams[modality].mean * gradient[rows]).sum())
        return torch.stack(shares).sum()


@torch.no_grad()
def collect_means(
    outputs: Iterable[ModelOutput],
    micro_batches: Sequence[FeatureBatch],
    modalities: Sequence[str],
    global_batch: int,
    ranks: int,
) -> dict[str, Tensor]:
    """The means of the whole global batch: per modality [G, D] by place, zero where there is no utterance.

    A collective over ranks: every rank calls, also one without utterances.

    Args:
        outputs: of the micro-batches, one after another; only their means are kept.
        micro_batches: of this rank; at least one, which may be empty.
    """
    table = None
    for output, micro in zip(outputs, micro_batches, strict=True):
        means = torch.cat([output.streams[m].mean for m in modalities], 1)
        if table is None:
            table = means.new_zeros(global_batch, means.shape[1])
        table.index_copy_(0, to_device_async(micro.place.numpy(), means.device), means)
    assert table is not None
    if ranks > 1:
        dist.all_reduce(table)  # a sum of one rank's row and zeros: exact
    return dict(zip(modalities, table.chunk(len(modalities), 1), strict=True))


def hold(means: dict[str, Tensor], info: GlobalBatchInfo, config: LossConfig) -> HeldMeans:
    """The cross-modal terms of the whole batch and their gradients; the same on every rank.

    Args:
        means: of `collect_means`.
        info: of a batch that was counted as a whole.
    """
    assert info.everywhere is not None
    device = next(iter(means.values())).device
    with torch.enable_grad():
        live = {m: mean.detach().requires_grad_() for m, mean in means.items()}
        streams = {
            m: stream_of_means(mean, to_device_async(info.everywhere.present[m], device))
            for m, mean in live.items()
        }
        pools = {
            (a, v): NegativePool(
                live[v],
                {
                    name: to_device_async(np.ascontiguousarray(drawn), device)
                    for name, drawn in zip(DRAWS, of_pair, strict=True)
                },
            )
            for (a, v), of_pair in info.everywhere.negatives.items()
        }
        terms = loss_terms(
            ModelOutput(next(iter(live.values()))[:, :0], streams),
            torch.zeros(0, dtype=torch.int64, device=device),
            pools,
            info.normalizers,
            config,
            terms=CROSS_MODAL,
        )
        gradients = torch.autograd.grad(
            total_loss(terms, config, CROSS_MODAL),
            list(live.values()),
            allow_unused=True,
            materialize_grads=True,
        )
    return HeldMeans(terms.detach(), dict(zip(live, gradients, strict=True)))


def stream_of_means(mean: Tensor, present: Tensor) -> ModalityOutput:
    """The output of one modality in which all but the means [G, D] of G utterances is left out."""
    none = mean.new_zeros(0)
    steps = torch.zeros(0, dtype=torch.int64, device=mean.device)
    return ModalityOutput(
        h=none,
        distances=none,
        weights=none,
        pooled=none,
        mean=mean,
        statistics=none,
        present=present,
        offsets=steps,
        utterance=steps,
    )
