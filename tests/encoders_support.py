"""Hugging Face models with small random weights, saved with `save_pretrained`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
CONVOLUTIONS = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
TEXT = {**SMALL, "vocab_size": 50}


def save(folder: Path, model: str, config: str, processor: Any, **settings: Any) -> Path:
    """Save a model with random weights and its processor."""
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    made.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def wav2vec_like(name: str, **settings: Any) -> Callable[[Path], Path]:
    def make(folder: Path, **changes: Any) -> Path:
        from transformers import Wav2Vec2FeatureExtractor

        of_all = {**SMALL, **CONVOLUTIONS, **settings, **changes}
        return save(folder, f"{name}Model", f"{name}Config", Wav2Vec2FeatureExtractor(), **of_all)

    return make


def whisper(folder: Path) -> Path:
    from transformers import WhisperFeatureExtractor

    settings = {
        **{"d_model": 32, "encoder_layers": 3, "decoder_layers": 1, "vocab_size": 50, "pad_token_id": 0},
        **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "decoder_start_token_id": 1},
        **{"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "bos_token_id": 1, "eos_token_id": 2},
    }
    # A window of 1 s instead of 30.
    processor = WhisperFeatureExtractor(chunk_length=1)
    return save(folder, "WhisperModel", "WhisperConfig", processor, max_source_positions=50, **settings)


AUDIO = {
    "wav2vec2": wav2vec_like("Wav2Vec2"),
    "wav2vec2 with stable layer norm": wav2vec_like("Wav2Vec2", **STABLE),
    "hubert": wav2vec_like("Hubert"),
    "wavlm": wav2vec_like("WavLM"),
    "whisper": whisper,
}


def vision(model: str, config: str, processor: str, **settings: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import transformers

        size = (
            {"shortest_edge": 32} if processor in ("CLIPImageProcessor", "VideoMAEImageProcessor") else None
        )
        prepared = getattr(transformers, processor)(
            size=size or {"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}
        )
        return save(folder, model, config, prepared, **settings)

    return make


VIDEO = {
    "clip": vision(
        "CLIPModel",
        "CLIPConfig",
        "CLIPImageProcessor",
        text_config=TEXT,
        vision_config=VISION,
        projection_dim=16,
    ),
    "siglip": vision("SiglipVisionModel", "SiglipVisionConfig", "SiglipImageProcessor", **VISION),
    "vit": vision("ViTModel", "ViTConfig", "ViTImageProcessor", **VISION),
    "dinov2": vision("Dinov2Model", "Dinov2Config", "CLIPImageProcessor", **VISION),
    "videomae": vision("VideoMAEModel", "VideoMAEConfig", "VideoMAEImageProcessor", **VISION, num_frames=4),
}
