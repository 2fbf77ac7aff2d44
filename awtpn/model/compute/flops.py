"""FLOPs of a training step and parameters of the network, from the sizes alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PARTS = ("ses", "distances", "attention", "losses", "optimizer")


def step_flops(
    lengths: Mapping[str, Sequence[int]],
    feature_dims: Mapping[str, int],
    dim: int,
    classes: int,
    prototypes_per_class: int = 1,
    *,
    adaptive: bool = True,
    recompute: bool = False,
    statistics: bool = False,
) -> dict[str, float]:
    """FLOPs of one optimizer step (forward, backward, clipping, AdamW), per part.

    A multiplication and an addition count as two FLOPs. For T steps of F features, D shared dims and
    utterances of M steps, the large terms are SES 4 T F D (features take no gradient), distances 6 T C K D,
    attention 6 T D^2 + 6 D^3 for its maps (12 T D^2 if D > T) and 6 sum M^2 D for its scores.

    Args:
        lengths: per modality the steps of each utterance of the step (of one rank, to count one rank's work);
            0 for an utterance without the modality.
        feature_dims: features per step of each modality in `lengths`.
        dim: D, the shared dim.
        classes, prototypes_per_class: C and K.
        adaptive: `model.awm` is adaptive; uniform has no attention.
        recompute: count the scores that forms of linear memory compute a second time in backward
            (2 sum M^2 D more). Leave them out for the work that the network itself needs.
        statistics: `model.statistics`: 6 T F for means and deviations, and their map to logits.

    Returns:
        FLOPs of each of `PARTS`: ses (standardize, project, ReLU), distances (to the prototypes), attention
        (reliability, maps, scores, weights), losses (pooling, classifier, loss terms), optimizer (gradient
        norm and update).
    """
    flops = dict.fromkeys(PARTS, 0.0)
    utterances = max((len(of) for of in lengths.values()), default=0)
    prototypes = classes * prototypes_per_class
    for modality, of in lengths.items():
        steps, features = sum(of), feature_dims[modality]
        h = steps * dim  # elements of one activation in the shared space
        flops["ses"] += 4 * steps * features * dim + 2 * steps * features + 4 * h
        flops["distances"] += 6 * h * prototypes + 5 * h
        if adaptive:
            flops["attention"] += _attention_flops(of, dim, recompute)
        # Mean and weighted sum of h, forward and backward; then the log-softmax of the align term.
        flops["losses"] += 10 * h + 15 * steps * classes
    # Two cosines and two norms per pair of modalities, and the classifier, on the utterances' vectors.
    # Backward is twice forward.
    pooled, pairs = utterances * dim, math.comb(len(lengths), 2)
    flops["losses"] += 54 * pooled * pairs + 6 * pooled * classes
    if statistics:
        for modality, of in lengths.items():
            flops["losses"] += feature_dims[modality] * (6 * sum(of) + 8 * len(of) * classes)
    parameters = parameter_count(
        feature_dims, dim, classes, prototypes_per_class, adaptive, statistics=statistics
    )
    flops["optimizer"] = 18.0 * parameters
    return flops


def _attention_flops(lengths: Sequence[int], dim: int, recompute: bool) -> float:
    steps, scores = sum(lengths), sum(m * m for m in lengths)
    # h (Wq^T Wk) takes one product of the maps instead of one map over all steps.
    maps = min(6 * steps * dim**2 + 6 * dim**3, 12 * steps * dim**2)
    products = (8 if recompute else 6) * scores * dim
    softmax = 12 * scores
    return maps + products + softmax


def parameter_count(
    feature_dims: Mapping[str, int],
    dim: int,
    classes: int,
    prototypes_per_class: int = 1,
    adaptive: bool = True,
    learnable_prototypes: bool = True,
    statistics: bool = False,
) -> int:
    """Trainable parameters: SES, prototypes, query and key maps, classifier, map of statistics."""
    ses = sum(features * dim + dim for features in feature_dims.values())
    maps = 2 * dim**2 * len(feature_dims) if adaptive else 0
    prototypes = classes * prototypes_per_class * dim if learnable_prototypes else 0
    of_statistics = 2 * sum(feature_dims.values()) * classes if statistics else 0
    return ses + maps + prototypes + classes * dim + classes + of_statistics
