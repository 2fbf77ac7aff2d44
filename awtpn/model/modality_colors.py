"""The color of each modality, the same in all pictures of a prediction and of a run.

From the palette of Okabe and Ito, which color-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from awtpn.model.settings import PUBLISHED_WEIGHTS

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def modality_colors(modalities: Iterable[str]) -> dict[str, str]:
    """A color for each modality; those of the default model keep theirs in every model.

    Args:
        modalities: of a model, in its order.
    """
    names = list(modalities)
    order = [*PUBLISHED_WEIGHTS, *(m for m in names if m not in PUBLISHED_WEIGHTS)]
    return {m: PALETTE[order.index(m) % len(PALETTE)] for m in names}
