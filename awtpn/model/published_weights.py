"""The published code's checkpoints, as weights of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

# What the published code calls each tensor, and what we do.
REFERENCE_KEYS = {
    "ses.audio_proj.0.weight": "ses.audio.weight",
    "ses.audio_proj.0.bias": "ses.audio.bias",
    "ses.video_proj.0.weight": "ses.video.weight",
    "ses.video_proj.0.bias": "ses.video.bias",
    "tpn.prototypes": "tpn.prototypes",
    "awm.q_a.weight": "awm.audio.query",
    "awm.k_a.weight": "awm.audio.key",
    "awm.q_v.weight": "awm.video.query",
    "awm.k_v.weight": "awm.video.key",
    "classifier.weight": "classifier.weight",
    "classifier.bias": "classifier.bias",
}


def translate(
    state_dict: Mapping[str, Tensor], settings: Mapping[str, Any], classes: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, int], list[str], dict[str, Tensor]]:
    """What a published state_dict says, in our words.

    Args:
        state_dict: of the published code.
        settings: those of `ModelConfig` that tensors do not tell.
        classes: the labels' names; default "class_0" and so on.

    Returns:
        Settings of `ModelConfig`, widths of the features, names of the classes, weights.

    Raises:
        ValueError: keys are missing or unknown, or the number of names is another; says which.
    """
    missing, unknown = REFERENCE_KEYS.keys() - state_dict.keys(), state_dict.keys() - REFERENCE_KEYS.keys()
    if missing or unknown:
        raise ValueError(
            f"no published AWTPN state_dict: missing {sorted(missing)}, unknown {sorted(unknown)}"
        )
    ours = {REFERENCE_KEYS[name]: tensor for name, tensor in state_dict.items()}
    count, dim = ours["tpn.prototypes"].shape
    names = list(classes) if classes is not None else [f"class_{i}" for i in range(count)]
    if len(names) != count:
        raise ValueError(f"the checkpoint has {count} classes, but {len(names)} names were given")
    fixed = {"prototypes_per_class": 1, "modalities": ["audio", "video"], "awm": "adaptive"}
    dims = {m: ours[f"ses.{m}.weight"].shape[1] for m in ("audio", "video")}
    return {**settings, "shared_dim": dim, **fixed}, dims, names, ours
