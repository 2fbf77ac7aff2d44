"""Text models: transformers classes with small random weights, and tokenizers trained on two sentences."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders_support import AUDIO, TEXTS
from support import same_bits_or_close

from shards.extraction.encoders import open_audio_encoder, open_text_encoder
from shards.extraction.reopen_encoder import reopen_encoder
from shards.format.feature_space import space_of

WORDS = (
    "I",
    "am",
    "NOT",
    "unhappy,",
    "[SEP]",
    "\U0001f62d",
    "\u597d",
    "\u0645\u0631\u062d\u0628\u0627",
    "\ud800",
)
ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "t5": "T5EncoderModel",
    "deberta-v2": "DebertaV2Model",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder / name) for name, make in TEXTS.items()}


@pytest.mark.parametrize("name", TEXTS)
def test_a_word_is_the_mean_of_its_sub_words(models: dict[str, Path], name: str) -> None:
    import transformers

    encoder: Any = open_text_encoder(str(models[name]))
    words = ("I", "am", "unhappy", "happyday")
    [features] = encoder.encode([words])
    tokenizer = transformers.AutoTokenizer.from_pretrained(models[name])
    # Inside a sentence, a word of a byte-level BPE begins with a space.
    tokens = tokenizer((" " if name == "roberta" else "") + " ".join(words), return_tensors="pt")
    model = getattr(transformers, ARCHITECTURES[name]).from_pretrained(models[name]).eval()
    with torch.no_grad():
        states = model(**{k: tokens[k] for k in ("input_ids", "attention_mask")}).last_hidden_state[0].numpy()
    ids = tokens["input_ids"][0].tolist()
    lengths = [
        len(tokenizer((" " if name == "roberta" else "") + word, add_special_tokens=False)["input_ids"])
        for word in words
    ]
    assert sum(lengths) == len(ids) - 2
    assert max(lengths) > 1
    ends = 1 + np.cumsum(lengths)
    expected = [states[end - n : end].mean(axis=0) for n, end in zip(lengths, ends, strict=True)]
    assert features.dtype == np.float32
    assert np.allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize("name", TEXTS)
def test_steps_are_the_words_whatever_else_is_in_the_batch(models: dict[str, Path], name: str) -> None:
    encoder: Any = open_text_encoder(str(models[name]), batch_tokens=64)
    texts = [WORDS, (), ("day",), ("what", "a", "happy", "day") * 30]
    together = encoder.encode(texts)
    assert [len(of) for of in together] == [len(words) for words in texts]
    for words, features in zip(texts, together, strict=True):
        assert np.abs(features).sum(axis=1).all(), "no word is dropped"
        assert np.allclose(features, encoder.encode([words])[0], atol=1e-5)


def test_a_word_without_tokens_has_zeros(models: dict[str, Path]) -> None:
    encoder: Any = open_text_encoder(str(models["bert"]))
    [features, nothing] = encoder.encode([("day", "\u200b", "day"), ("\u200b",)])
    assert np.abs(features).sum(axis=1).astype(bool).tolist() == [True, False, True]
    assert not nothing.any()


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_long_texts_are_cut_into_windows(models: dict[str, Path], name: str) -> None:
    encoder: Any = open_text_encoder(str(models[name]))
    assert encoder.settings["window"] == 24, "what begins and ends a window is among its tokens"
    words = ("not", "happy", "at", "all") * 25
    [features] = encoder.encode([words])
    windows = list(encoder._windows([words]))
    assert len(windows) > 4
    used = np.concatenate([window.words[window.words >= 0] for window in windows])
    assert (np.diff(used) >= 0).all(), "each sub-word is used once, in order"
    tokens = sum(len(encoder._tokenizer.tokenize(encoder._space + word)) for word in words)
    assert len(used) == tokens
    inside = windows[0].words[windows[0].words >= 0]
    first = words[: inside[-1]]
    assert np.allclose(features[0], encoder.encode([words[: len(first) + 6]])[0][0], atol=1e-5)
    # A word longer than a window has one vector, too.
    assert encoder.encode([("unhappy" * 40, "day")])[0].shape == (2, 32)


def test_layers_and_precisions(models: dict[str, Path]) -> None:
    folder = str(models["bert"])
    layers = [open_text_encoder(folder, layer=layer) for layer in (0, 1, -1, 3)]
    found = [encoder.encode([("happy", "day")])[0] for encoder in layers if encoder]
    assert not np.allclose(found[0], found[1], atol=1e-3)
    assert same_bits_or_close(found[2], found[3])
    assert [encoder.settings["layer"] for encoder in layers if encoder] == [0, 1, 3, 3]
    with pytest.raises(ValueError, match="layer=4; the model has layers 0"):
        open_text_encoder(folder, layer=4)
    half: Any = open_text_encoder(folder, dtype="bfloat16")
    assert np.allclose(half.encode([("happy", "day")])[0], found[3], atol=0.1)
    assert space_of(half.settings) == space_of(layers[3].settings) if layers[3] else False


def test_the_tokenizer_is_part_of_the_model(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["bert"], tmp_path / "m"))
    encoder: Any = open_text_encoder(str(folder), layer=1)
    folder.rename(tmp_path / "moved")
    again = reopen_encoder("text", encoder.settings, spec=str(tmp_path / "moved"))
    assert same_bits_or_close(again.encode([WORDS])[0], encoder.encode([WORDS])[0])
    path = tmp_path / "moved" / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"is not the one that was recorded: .*sha256.* then, .*sha256.* now"
    ):
        reopen_encoder("text", encoder.settings, spec=str(tmp_path / "moved"))


def test_a_model_of_sound_does_not_depend_on_a_tokenizer(tmp_path: Path) -> None:
    """Whisper's and wav2vec's folders often hold one; recorded feature spaces are without it."""
    folder = AUDIO["wav2vec2"](tmp_path / "m")
    before: Any = open_audio_encoder(str(folder))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "vocab.json").write_text("{}")
    after: Any = open_audio_encoder(str(folder))
    assert after.settings == before.settings


def test_unfit_tokenizers_are_refused_by_name(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["roberta"], tmp_path / "m"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"more{i}": len(vocabulary) + i for i in range(9)}
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens, but the model \d+: .* different models"):
        open_text_encoder(str(folder))
    (folder / "tokenizer.json").write_text(whole[:100])
    with pytest.raises(ValueError, match="has no tokenizer that can be loaded"):
        open_text_encoder(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer.json is missing; .* save_pretrained"):
        open_text_encoder(str(folder))
    (folder / "spiece.model").write_text("x")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    code = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(code))
    with pytest.raises(ValueError, match="has no tokenizer that can be loaded"):
        open_text_encoder(str(folder))
    assert not (tmp_path / "sprung").exists()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(
        ValueError, match=r"model type 'gpt2' is not one that can encode this: use albert, bert"
    ):
        open_text_encoder(str(folder))
