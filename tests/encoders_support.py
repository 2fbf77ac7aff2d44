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


# --- Text ----------------------------------------------------------------------------------------

SENTENCES = ["I am not happy at all, said the unhappy man.", "Oh my god! What a happy, happy day :-)"] * 3


def text_model(folder: Path, model: str, config: str, tokenizer: Any, **settings: Any) -> Path:
    """Save a text model with random weights and a fast tokenizer."""
    from transformers import PreTrainedTokenizerFast

    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    ids = {name: fast.convert_tokens_to_ids(named[name]) for name in ("pad_token",)}
    of_all = {**SMALL, "vocab_size": len(fast), "pad_token_id": ids["pad_token"], **settings}
    return save(folder, model, config, fast, **of_all)


def trained_tokenizer(kind: str) -> Any:
    """A tokenizer trained on `SENTENCES`: "WordPiece", "ByteLevel" or "Metaspace"."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=80, special_tokens=special)
    elif kind == "ByteLevel":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="[UNK]")
    tokenizer.train_from_iterator(SENTENCES, trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def text(model: str, tokenizer: str, **settings: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        config = model.replace("EncoderModel", "Config").replace("Model", "Config")
        return text_model(folder, model, config, trained_tokenizer(tokenizer), **settings)

    return make


T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 3, "num_heads": 2}
TEXTS = {
    "bert": text("BertModel", "WordPiece", max_position_embeddings=24),
    "roberta": text("RobertaModel", "ByteLevel", max_position_embeddings=26),
    "t5": text("T5EncoderModel", "Metaspace", **T5),
    "deberta-v2": text("DebertaV2Model", "Metaspace", relative_attention=True, pos_att_type=["p2c", "c2p"]),
}
