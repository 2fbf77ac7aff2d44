"""Encoders within the model, which are trained with it: from recordings to features, end to end.

- `settings`: the configuration section `encoder`
- `opening`: opens the encoder that the settings name: `open_encoder`
- `base`: what encoders share; `audio`: of sound; `video`: of pictures
- `passes`: utterances of similar length, for forward and backward passes of bounded work
- `tuning`: which weights are trained, LoRA, learning rates by layer
- `structure`: where the parts of a Hugging Face model are
- `card`: encoders in a model's card, and how they are opened again; `size_check`: no more than they hold
- `merging`: saves a trained encoder as a Hugging Face folder; `readme`: licenses of base models
- used by `audio`: `group_norm`: a norm that does not see padding; `wavlm`: WavLM's attention
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from awtpn.model.encoders.base import Encoder
    from awtpn.model.encoders.card import records_of, reopen_encoders
    from awtpn.model.encoders.opening import open_encoder
    from awtpn.model.encoders.passes import parts_of, passes_of
    from awtpn.model.encoders.tuning import lr_scales

__all__ = [
    "Encoder",
    "lr_scales",
    "open_encoder",
    "parts_of",
    "passes_of",
    "records_of",
    "reopen_encoders",
]

# Imported when it is first used: the configuration reads `settings`, and needs no torch.
_MODULE_OF = {
    "Encoder": "base",
    "lr_scales": "tuning",
    "open_encoder": "opening",
    "parts_of": "passes",
    "passes_of": "passes",
    "records_of": "card",
    "reopen_encoders": "card",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value
