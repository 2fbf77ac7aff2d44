"""Convert checkpoints of the published code to the names of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from awtpn.model.settings import FORMER_MODEL, PUBLISHED_WEIGHTS, select_modalities

MODALITIES = ("audio", "video")  # of the published code
# Name of each tensor in the published code -> its name here.
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


def convert_state_dict(
    state_dict: Mapping[str, Tensor], settings: Mapping[str, Any], classes: Sequence[str] | None
) -> tuple[dict[str, Any], dict[str, int], list[str], dict[str, Tensor]]:
    """Convert a state_dict of the published code.

    Args:
        state_dict: of the published code.
        settings: fields of `ModelConfig` that the tensors do not determine.
        classes: class names; default "class_0", "class_1", ...

    Returns:
        Fields of `ModelConfig`, features per step by modality, class names, and the state_dict for `AWTPN`.

    Raises:
        ValueError: keys are missing or unknown, or the number of class names differs; names them.
    """
    missing, unknown = REFERENCE_KEYS.keys() - state_dict.keys(), state_dict.keys() - REFERENCE_KEYS.keys()
    if missing or unknown:
        raise ValueError(
            f"not a state_dict of the published code: missing keys {sorted(missing)}, "
            f"unknown keys {sorted(unknown)}"
        )
    converted = {REFERENCE_KEYS[name]: tensor for name, tensor in state_dict.items()}
    count, dim = converted["tpn.prototypes"].shape
    names = list(classes) if classes is not None else [f"class_{i}" for i in range(count)]
    if len(names) != count:
        raise ValueError(f"the checkpoint has {count} classes, but {len(names)} names were given")
    given = settings.get("modalities") or {m: {"weight": w} for m, w in PUBLISHED_WEIGHTS.items()}
    modalities = select_modalities(given, MODALITIES)
    fixed = {"prototypes_per_class": 1, "modalities": modalities, "awm": "adaptive", **FORMER_MODEL}
    dims = {m: converted[f"ses.{m}.weight"].shape[1] for m in MODALITIES}
    return {**settings, "shared_dim": dim, **fixed}, dims, names, converted
