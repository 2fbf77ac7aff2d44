"""Small encoders of sound and of pictures with random weights, in the files of Hugging Face models.

They are of the architectures that are used pretrained elsewhere, wav2vec 2.0 and ViT, with two narrow layers
each. So a demo of training them needs no download.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shards.sources.made_up import moments

SEED = 0
# Random features of a larger range than transformers' own 0.02, with which a layer would change little of its
# input.
SHARED = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.1,
}
# A hidden step every 40 ms, of 48 ms. The layer norm makes features independent of the padding.
AUDIO: dict[str, Any] = {
    **SHARED,
    "conv_dim": [16, 32, 64],
    "conv_kernel": [16, 8, 4],
    "conv_stride": [8, 5, 4],
    "conv_bias": True,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
}
# Standard deviation of position embeddings, about that of patches. Much smaller ones are lost beside the
# patches, and it takes long until the encoder learns where a patch lies.
POSITIONS = 1.0
VIDEO: dict[str, Any] = {
    **SHARED,
    "image_size": moments.SIDE,
    "patch_size": moments.SIDE // 2,  # a square of stripes
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def save(folder: Path, modality: str) -> None:
    """Write an encoder: what `save_pretrained` of its model and of its processor write.

    Args:
        folder: a new one; it appears when all files are there.
        modality: "audio" or "video".

    Raises:
        OSError: the folder cannot be written.
        ImportError: transformers does not import.
    """
    import torch

    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        written = Path(temporary) / folder.name
        with torch.random.fork_rng(devices=[]), _quiet():  # the caller's random numbers stay as they are
            torch.manual_seed(SEED)
            model, processor = _audio() if modality == "audio" else _video()
            model.save_pretrained(written)
            processor.save_pretrained(written)
        written.rename(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and notes of transformers."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _audio() -> tuple[Any, Any]:
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    processor = Wav2Vec2FeatureExtractor(
        sampling_rate=moments.RATE, do_normalize=True, return_attention_mask=True
    )
    return Wav2Vec2Model(Wav2Vec2Config(**AUDIO)), processor


def _video() -> tuple[Any, Any]:
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    model = ViTModel(ViTConfig(**VIDEO), add_pooling_layer=False)
    torch.nn.init.normal_(model.embeddings.position_embeddings, std=POSITIONS)
    return model, ViTImageProcessor(size={"height": moments.SIDE, "width": moments.SIDE})
