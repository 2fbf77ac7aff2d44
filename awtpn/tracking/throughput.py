"""Work and speed of training steps, computed on the host from the utterances' lengths: no device sync."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from awtpn.model.base import EmotionModel
from awtpn.model.compute.flops import step_flops
from awtpn.model.network import AWTPN
from shards import FeatureBatch

# What `batch_cost` counts; the counts can be summed over ranks and steps.
WORK = ("flops", "steps", "bytes", "padded_bytes")


def batch_cost(batch: FeatureBatch, model: EmotionModel) -> NDArray[np.float64]:
    """Work of a rank's share of an optimizer step: [4] in the order of WORK.

    `flops` are those that the network needs (`awtpn.model.compute.flops`), without recomputation and
    padding, and 0 for a baseline; `steps` are those of all modalities; `padded_bytes` is the features' size
    if each modality were padded to the longest utterance of this share.
    """
    lengths = {m: batch.features[m].host_lengths for m in model.feature_dims}
    features = {m: batch.features[m].values for m in lengths}
    padded = sum(max(of, default=0) * len(of) * features[m][:1].nbytes for m, of in lengths.items())
    steps = sum(len(values) for values in features.values())
    own = sum(values.nbytes for values in features.values())
    sizes = (steps, own, padded)
    if not isinstance(model, AWTPN):
        return np.array([0.0, *sizes], dtype=np.float64)
    flops = step_flops(
        lengths,
        model.feature_dims,
        model.config.shared_dim,
        sum(model.task.group_sizes),
        model.config.prototypes_per_class,
        adaptive=model.config.awm == "adaptive",
        statistics=model.config.statistics,
    )
    return np.array([sum(flops.values()), *sizes], dtype=np.float64)


def throughput(seconds: float, utterances: int, waited: float, work: Sequence[float]) -> dict[str, float]:
    """Speed of some optimizer steps that took `seconds`, by TensorBoard tag.

    Args:
        utterances: of these steps, over all ranks.
        waited: seconds that a rank waited for data in these steps; the mean over ranks.
        work: [4] of `batch_cost`, summed over these steps and all ranks.
    """
    seconds = max(seconds, 1e-9)
    of = dict(zip(WORK, work, strict=True))
    return {
        "system/utterances_per_s": utterances / seconds,
        "system/segments_and_frames_per_s": of["steps"] / seconds,
        **({"system/teraflop_per_s": of["flops"] / seconds / 1e12} if of["flops"] else {}),
        "data/wait_share": waited / seconds,
        "data/padding_avoided": 1 - of["bytes"] / of["padded_bytes"] if of["padded_bytes"] else 0.0,
    }


def memory(device: torch.device) -> dict[str, float]:
    """Peak GPU memory of this process in GiB, or its main memory now if it has no GPU; by tag."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
    else:
        held = psutil.Process().memory_info().rss
    return {"system/memory_gib": held / 2**30}
