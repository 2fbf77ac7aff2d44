"""Networks of the literature to compare AWTPN with, behind one small protocol; see `Network`.

- `protocol`: what a network takes and gives; `layers`: what several networks share
- `late_fusion`: a perceptron per modality on the mean over time, late fusion
- `gated_attention`: gated attention pooling per modality, late fusion
- `gru`: a bidirectional GRU with attention per modality
- `cross_modal`: a small cross-modal transformer

They have no prototypes and no reliability weights; the logits are all that a loss can use.
"""

from __future__ import annotations

from awtpn.model.baselines.cross_modal import CrossModal
from awtpn.model.baselines.gated_attention import GatedAttention
from awtpn.model.baselines.gru import GRUAttention
from awtpn.model.baselines.late_fusion import LateFusion
from awtpn.model.baselines.protocol import Network

__all__ = ["NETWORKS", "CrossModal", "GRUAttention", "GatedAttention", "LateFusion", "Network"]

# By the value of `model.name`.
NETWORKS: dict[str, type[Network]] = {
    "late-fusion": LateFusion,
    "gated-attention": GatedAttention,
    "gru": GRUAttention,
    "cross-modal": CrossModal,
}
