"""The passes that encoders run, drawn from the lengths of a dataset's utterances.

A run cuts each micro-batch into passes by the lengths of its recordings (`awtpn.model.encoders.passes`). The
estimate draws micro-batches at random, cuts them by the same function, and takes the pass that needs most
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from awtpn.bench.encoder_memory.activations import Pass
from awtpn.bench.encoder_memory.shape import Shape
from awtpn.model.encoders.passes import Budget, plan_passes
from shards.tools.info import Lengths

QUANTILES = 1001
MOST_DRAWS, MOST_UTTERANCES = 200, 20_000


@dataclass(frozen=True)
class DrawnPass:
    """What a pass holds.

    Attributes:
        steps: by modality time steps of features.
        windows: by modality with an encoder what it computes.
    """

    steps: dict[str, int]
    windows: dict[str, Pass]


def quantiles_of(lengths: Lengths) -> NDArray[np.float64]:
    """Lengths [QUANTILES] in time steps, from the shortest to the longest; 0 without the modality."""
    counts = np.array([lengths.missing, *lengths.counts], np.float64)
    if counts.sum() == 0:
        return np.zeros(QUANTILES)
    share = np.linspace(0.0, counts.sum(), QUANTILES)
    known = np.maximum(share - lengths.missing, 0.0)
    edges = np.minimum(np.array(lengths.edges, np.float64), lengths.most) if lengths.edges else np.zeros(1)
    found = np.interp(known, np.concatenate([[0.0], np.cumsum(lengths.counts)]), edges)
    return np.where(share < lengths.missing, 0.0, found)


def exponential_quantiles(mean: float, longest: float) -> NDArray[np.float64]:
    """Lengths [QUANTILES] whose deviation is their mean, up to the longest one."""
    return np.minimum(-mean * np.log1p(-np.linspace(0.0, 1.0 - 1e-6, QUANTILES)), longest)


def draw_passes(
    shapes: Mapping[str, Shape], quantiles: Mapping[str, NDArray[np.float64]], micro_batch: int
) -> list[list[DrawnPass]]:
    """The passes of micro-batches drawn at random, always the same; at last that of the longest utterance.

    An utterance has the same place among the lengths of all modalities: its pictures last as its sound does.

    Args:
        shapes: the encoders.
        quantiles: of all modalities, of the lengths in stored steps.
        micro_batch: utterances of each.
    """
    draws = int(np.clip(MOST_UTTERANCES // micro_batch, 1, MOST_DRAWS))
    rng = np.random.default_rng(0)
    places = [*rng.integers(0, QUANTILES, (draws, micro_batch)), np.array([QUANTILES - 1])]
    budgets = {m: Budget(shape.budget, shape.settings.max_padding) for m, shape in shapes.items()}
    found = []
    for drawn in places:
        steps = {m: np.rint(of[drawn]).astype(int).tolist() for m, of in quantiles.items()}
        windows = {m: [shape.windows_of(n) for n in steps[m]] for m, shape in shapes.items()}
        planned = plan_passes(windows, budgets, range(len(drawn)))
        found.append([_drawn(rows, shapes, steps, windows) for rows in planned])
    return found


def _drawn(
    rows: Sequence[int],
    shapes: Mapping[str, Shape],
    steps: Mapping[str, Sequence[int]],
    windows: Mapping[str, Sequence[Sequence[int]]],
) -> DrawnPass:
    features, computed = {}, {}
    for m, of in steps.items():
        features[m] = sum(shapes[m].features_of(of[i]) if m in shapes else of[i] for i in rows)
    for m in shapes:
        sizes = [size for i in rows for size in windows[m][i]]
        # Without any, the network is given the least that it takes.
        computed[m] = Pass(len(sizes), max(sizes), min(sizes) < max(sizes)) if sizes else Pass(0, 1)
    return DrawnPass(features, computed)


def heaviest(drawn: Sequence[Sequence[DrawnPass]], weight: Callable[[DrawnPass], float]) -> DrawnPass:
    """The pass that `weight` gives most."""
    return max((each for passes in drawn for each in passes), key=weight)
