"""Hugging Face text models: BERT, RoBERTa, DeBERTa, XLM-R, ModernBERT, the encoder of T5, and relatives.

A fast tokenizer splits each word into sub-words. The features of a word are the mean of the hidden states of
its sub-words at one layer; a word without any (such as a lone zero-width mark) has zeros, so that there are
as many steps as words. A text longer than a window (the longest that the model takes, at most 512 sub-words)
is cut into windows that overlap by a quarter: of a sub-word in two windows, the state with more context
counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from json import loads
from typing import Any, ClassVar

import numpy as np

from shards.extraction.encoders.hf import LocatedModel, layer_number, load_model, load_tokenizer, versions
from shards.safe_io.file_names import as_text

LONGEST_WINDOW = 512


@dataclass(frozen=True)
class Window:
    """A part of a text as a model takes it.

    Attributes:
        text: number of the text.
        tokens: with those that begin and end a window.
        words: per token the number of its word; -1 if its state is not used.
    """

    text: int
    tokens: list[int]
    words: np.ndarray


class HFText:
    """Text encoder, see the module; attributes as `shards.extraction.encoders` says.

    Args:
        model: the model.
        device: where it runs.
        dtype: what it computes in.
        layer: hidden layer whose output is used: 0 is the first layer's input, -1 the last layer's output.
        batch_tokens: sub-words, padding included, that the model is given at once.

    Raises:
        ValueError: what cannot be loaded or done, by name.
    """

    modality = "text"
    architectures: ClassVar = {
        "albert": "AlbertModel",
        "bert": "BertModel",
        "camembert": "CamembertModel",
        "data2vec-text": "Data2VecTextModel",
        "deberta": "DebertaModel",
        "deberta-v2": "DebertaV2Model",
        "distilbert": "DistilBertModel",
        "electra": "ElectraModel",
        "ernie": "ErnieModel",
        "modernbert": "ModernBertModel",
        "mpnet": "MPNetModel",
        "mt5": "MT5EncoderModel",
        "rembert": "RemBertModel",
        "roberta": "RobertaModel",
        "t5": "T5EncoderModel",
        "umt5": "UMT5EncoderModel",
        "xlm-roberta": "XLMRobertaModel",
        "xlm-roberta-xl": "XLMRobertaXLModel",
    }

    def __init__(
        self,
        model: LocatedModel,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        layer: int = -1,
        batch_tokens: int = 8192,
    ) -> None:
        spec, kind = model.spec, model.model_type
        self._tokenizer = load_tokenizer(model)
        self._space = " " if _needs_spaces(self._tokenizer) else ""
        self._model = load_model(model, self.architectures[kind], device, dtype)
        config = self._model.config
        _check_vocabulary(self._tokenizer, self._model, spec)
        self._layers = int(config.num_hidden_layers)
        self._layer = layer_number(layer, self._layers, spec)
        self._window = _longest_window(self._tokenizer, self._model)
        self._overlap = (self._window - self._tokenizer.num_special_tokens_to_add()) // 4
        self._device, self._batch = device, batch_tokens
        self.name = spec
        self.dim = int(config.hidden_size)
        self.settings: dict[str, Any] = {
            **model.origin,
            "model_type": kind,
            "layer": self._layer,
            "step": "word",
            "window": self._window,
            "overlap": self._overlap,
            "dtype": dtype,
            "versions": versions(self._tokenizer),
        }

    def encode(self, texts: list[tuple[str, ...]]) -> list[np.ndarray]:
        """[T, dim] for each text of T words."""
        sums = [np.zeros((len(words), self.dim)) for words in texts]
        counts = [np.zeros(len(words)) for words in texts]
        # Longest first: a batch that does not fit into memory fails at once.
        windows = sorted(self._windows(texts), key=lambda window: -len(window.tokens))
        at = 0
        while at < len(windows):
            batch = windows[at : at + max(1, self._batch // len(windows[at].tokens))]
            for window, states in zip(batch, self._hidden([window.tokens for window in batch]), strict=True):
                used = np.flatnonzero(window.words >= 0)
                words, first = np.unique(window.words[used], return_index=True)
                sums[window.text][words] += np.add.reduceat(states[used], first, dtype=np.float64)
                counts[window.text][words] += np.diff(first, append=len(used))
            at += len(batch)
        return [
            (total / np.maximum(count, 1)[:, None]).astype(np.float32)
            for total, count in zip(sums, counts, strict=True)
        ]

    def _windows(self, texts: list[tuple[str, ...]]) -> Iterator[Window]:
        """The windows of all texts, in which the state of each sub-word is used once."""
        filled = [i for i, words in enumerate(texts) if words]
        if not filled:
            return
        found = self._tokenizer(
            [[self._space + as_text(word) for word in texts[i]] for i in filled],
            is_split_into_words=True,
            truncation=True,
            max_length=self._window,
            stride=self._overlap,
            return_overflowing_tokens=True,
            return_attention_mask=False,
            split_special_tokens=True,  # a word such as "[SEP]" is a word
        )
        of_text = found["overflow_to_sample_mapping"]
        for i, tokens in enumerate(found["input_ids"]):
            words = np.array([-1 if word is None else word for word in found.word_ids(i)], np.int64)
            inside = np.flatnonzero(words >= 0)
            # Of the overlap with the window before, the first half counts there; of that after, the second.
            if i > 0 and of_text[i - 1] == of_text[i]:
                words[inside[: self._overlap // 2]] = -1
            if i + 1 < len(of_text) and of_text[i + 1] == of_text[i]:
                words[inside[len(inside) - (self._overlap - self._overlap // 2) :]] = -1
            if len(inside):
                yield Window(filled[of_text[i]], tokens, words)

    def _hidden(self, windows: list[list[int]]) -> list[np.ndarray]:
        """Hidden states [tokens, dim] of each window."""
        import torch

        pad = self._tokenizer.pad_token_id or 0
        tokens = torch.full((len(windows), max(map(len, windows))), pad, device="cpu")
        mask = torch.zeros_like(tokens)
        for row, window in enumerate(windows):
            tokens[row, : len(window)] = torch.tensor(window)
            mask[row, : len(window)] = 1
        with torch.inference_mode():
            output = self._model(
                input_ids=tokens.to(self._device),
                attention_mask=mask.to(self._device),
                output_hidden_states=self._layer < self._layers,
            )
        # The last layer's output is taken after the norm that closes some models.
        last = self._layer == self._layers
        states = output.last_hidden_state if last else output.hidden_states[self._layer]
        states = states.float().cpu().numpy()
        return [own[: len(window)] for own, window in zip(states, windows, strict=True)]


def _longest_window(tokenizer: Any, network: Any) -> int:
    """The most tokens that a model takes at once, those that begin and end a window included."""
    longest = min(LONGEST_WINDOW, int(tokenizer.model_max_length))
    positions = getattr(getattr(network, "embeddings", None), "position_embeddings", None)
    if positions is not None:
        # RoBERTa and its relatives number positions from behind that of padding.
        before = 0 if positions.padding_idx is None else positions.padding_idx + 1
        longest = min(longest, positions.num_embeddings - before)
    return longest


def _needs_spaces(tokenizer: Any) -> bool:
    """Whether a word has to begin with a space, to be split as inside a sentence (byte-level BPE)."""
    state = loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"] or {}
    return any(
        (each["type"] == "ByteLevel" and not each["add_prefix_space"])
        or (each["type"] == "Metaspace" and each.get("prepend_scheme") == "never")
        for each in state.get("pretokenizers", [state])
        if "type" in each
    )


def _check_vocabulary(tokenizer: Any, network: Any, spec: str) -> None:
    """Raise ValueError if the tokenizer has tokens that the model lacks."""
    rows = network.get_input_embeddings().num_embeddings
    if not 0 < tokenizer.vocab_size <= rows:
        raise ValueError(
            f"{spec}: its tokenizer has {tokenizer.vocab_size} tokens, but the model {rows}: they are of "
            "different models; download the model again"
        )
