"""How much a step works on, known on the host from the utterances' lengths alone: no device is asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from awtpn.model.flops import step_flops
from awtpn.model.network import AWTPN
from shards import FeatureBatch

# What `work_of_batch` counts; sums over ranks and steps mean something.
WORK = ("flops", "steps", "bytes", "padded_bytes")


def batch_cost(batch: FeatureBatch, model: AWTPN) -> NDArray[np.float64]:
    """What a rank's share of an optimizer step amounts to, [4] in the order of WORK.

    `flops` are those that the network needs (`awtpn.model.flops.step_flops`), whatever a form of it
    computes again or pads; `steps` are segments and frames; `padded_bytes` is what the features would take,
    had each modality been padded to the longest utterance of this share.
    """
    lengths = {m: batch.features[m].host_lengths for m in model.feature_dims}
    config = model.config
    flops = step_flops(
        lengths,
        model.feature_dims,
        config.shared_dim,
        len(model.classes),
        config.prototypes_per_class,
        adaptive=config.awm == "adaptive",
    )
    features = {m: batch.features[m].values for m in lengths}
    padded = sum(max(of, default=0) * len(of) * features[m][:1].nbytes for m, of in lengths.items())
    steps = sum(len(values) for values in features.values())
    own = sum(values.nbytes for values in features.values())
    return np.array([sum(flops.values()), steps, own, padded], dtype=np.float64)


def throughput(seconds: float, utterances: int, waited: float, work: Sequence[float]) -> dict[str, float]:
    """The figures of some optimizer steps that took `seconds`, by their tag in TensorBoard.

    Args:
        utterances: of these steps, over all ranks.
        waited: seconds that a rank waited for data in them, on average.
        work: [4] of `work_of_batch`, summed over these steps and all ranks.
    """
    seconds = max(seconds, 1e-9)
    of = dict(zip(WORK, work, strict=True))
    return {
        "system/utterances_per_s": utterances / seconds,
        "system/segments_and_frames_per_s": of["steps"] / seconds,
        "system/teraflop_per_s": of["flops"] / seconds / 1e12,
        "data/wait_share": waited / seconds,
        "data/padding_avoided": 1 - of["bytes"] / of["padded_bytes"] if of["padded_bytes"] else 0.0,
    }


def memory(device: torch.device) -> dict[str, float]:
    """GiB that this process held at most on its GPU, or holds in main memory without one; by tag."""
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
    else:
        held = psutil.Process().memory_info().rss
    return {"system/memory_gib": held / 2**30}
