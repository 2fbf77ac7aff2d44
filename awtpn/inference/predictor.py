"""From a trained model to answers: labels, probabilities and which steps they rest on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from awtpn.model.device import resolve_device
from awtpn.model.finite_outputs import NotFiniteError, told
from awtpn.model.network import AWTPN
from shards import BadSample, FeatureStream, Ragged
from shards.extraction.pipeline import UNDECODABLE, decode_ahead, encode
from shards.extraction.reopen_encoder import reopen_encoder
from shards.format.feature_space import CONSTANT, recorded_constant, reopenable
from shards.safe_io.printable import get_logger
from shards.sources.base import Clip

logger = get_logger(__name__)

Features = Mapping[str, NDArray[Any] | None]


@dataclass(frozen=True)
class Prediction:
    """One utterance's answer.

    Attributes:
        label: the most probable class.
        probabilities: by class name; they sum to 1.
        weights: per modality the steps' reliability weights [T] float32 (Eq. 15-18), which sum to 1; none for
            a modality that the utterance lacks.
    """

    label: str
    probabilities: dict[str, float]
    weights: dict[str, NDArray[np.float32]]

    @property
    def is_finite(self) -> bool:
        """Whether this is an answer at all: probabilities and weights are numbers."""
        numbers = [np.array(list(self.probabilities.values())), *self.weights.values()]
        return all(bool(np.isfinite(of).all()) for of in numbers)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON takes it, to six digits."""
        return {
            "label": self.label,
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
            "weights": {m: [round(float(w), 6) for w in weights] for m, weights in self.weights.items()},
        }


class Predictor:
    """A trained model that takes features of utterances of any lengths.

        predictor = Predictor.from_pretrained("runs/demo")
        answers = predictor.predict([{"audio": a, "video": v}, {"audio": b, "video": None}])

    Features are what the model was trained on, not standardised: the model does that itself. Where it is
    known how they were made (`awtpn extract`), recordings will do:

        predictor.predict_recordings(["clip.mp4"])
    """

    def __init__(self, model: AWTPN, device: torch.device | str = "cpu") -> None:
        """Take over `model`, move it to `device` and put it in eval mode."""
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self._encoders: dict[str, Any] = {}

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: torch.device | str = "cpu") -> Predictor:
        """Load an export, a checkpoint, a run's best checkpoint, or a model of the Hugging Face Hub.

        Args:
            directory: the folder; where there is none of that name, a hub id, "user/model".
            device: "cpu", "cuda", "cuda:1".

        Raises:
            ValueError: the folder is none of these, or there is no such device.
        """
        return cls(AWTPN.from_pretrained(directory), resolve_device(device))

    def predict(self, utterances: Sequence[Features]) -> list[Prediction]:
        """Predict for utterances of different lengths at once.

        Args:
            utterances: per utterance [T, D] of each modality, an array or what NumPy makes one of; None or
                T = 0 where it is missing.

        Returns:
            One per utterance, in their order.

        Raises:
            ValueError: features have the wrong shape or are not finite, there is no such modality, or an
                utterance has no steps at all; names the utterance by its place, and the modality.
            NotFiniteError: the model's outputs for some utterances are not finite; names their places.
        """
        if isinstance(utterances, Mapping):
            raise ValueError("predict takes a list of utterances; of a single one: predict([utterance])")
        dims = self.model.feature_dims
        arrays = [checked(f"utterance {i}", utterance, dims) for i, utterance in enumerate(utterances)]
        features = {m: pack_arrays([of[m] for of in arrays], dim) for m, dim in dims.items()}
        answers = self._predict(features)
        if broken := [f"utterance {i}" for i, answer in enumerate(answers) if not answer.is_finite]:
            raise NotFiniteError(told(broken, len(broken), len(answers)))
        return answers

    def predict_stream(self, stream: FeatureStream) -> Iterator[tuple[str, Prediction]]:
        """(key, prediction) for every utterance that this rank has of a stream's epoch 0, in its order.

        Raises:
            ValueError, OSError: as `shards.FeatureStream.epoch` does.
            NotFiniteError: the model's outputs for some utterances of the next batch are not finite.
        """
        seen = 0
        for batch in stream.epoch(0):
            answers, seen = self._predict(batch.features), seen + len(batch)
            if broken := [k for k, answer in zip(batch.key, answers, strict=True) if not answer.is_finite]:
                where = f"{stream.url}, split {stream.split}"
                raise NotFiniteError(f"{where}: {told(broken, len(broken), seen)}")
            yield from zip(batch.key, answers, strict=True)

    def encoders(self, device: str | None = None, **moved: str | None) -> dict[str, Any]:
        """What made the features that the model was trained on, by modality, opened again; kept once open.

        Args:
            device: where encoders run; default the model's.
            moved: by modality, where the encoder's model is now, if not where it was.

        Raises:
            ValueError: nobody recorded how the features were made, or an encoder cannot be had any more.
        """
        if not self._encoders:
            known = reopenable(self.model.provenance)
            if missing := [m for m in self.model.feature_dims if m not in known]:
                raise ValueError(
                    f"how the model's features of {' and '.join(missing)} were made is not recorded, so they "
                    "cannot be made of a recording: give it a dataset of such features, or train a model on "
                    "one that `awtpn extract` made"
                )
            where = device or str(self.device)
            self._encoders = {
                m: reopen_encoder(m, known[m]["settings"], where, moved.get(m))
                for m in self.model.feature_dims
            }
        return self._encoders

    def predict_recordings(self, paths: Sequence[str | Path]) -> list[Prediction]:
        """Predict for recordings, whose features are made as those that the model was trained on.

        Raises:
            ValueError: a recording cannot be used, or as `encoders`; names the file.
        """
        answers = []
        for path, answer in self.answer_recordings(paths):
            if isinstance(answer, str):
                raise ValueError(answer if str(path) in answer else f"{path}: {answer}")
            answers.append(answer)
        return answers

    def answer_recordings(
        self, paths: Sequence[str | Path], batch: int = 16, threads: int = 4
    ) -> Iterator[tuple[Path, Prediction | str]]:
        """As `predict_recordings`, one after another; for a recording that cannot be used the cause."""
        encoders = self.encoders()
        clips = [Clip(str(path), "", "", Path(path), Path(path)) for path in paths]
        keep_constant, _ = recorded_constant(self.model.provenance)
        with closing(decode_ahead(clips, encoders, threads, keep_constant)) as decoded:
            for clip, sample in zip(clips, encode(decoded, encoders, batch), strict=True):
                assert clip.audio is not None
                if isinstance(sample, BadSample):
                    yield clip.audio, sample.cause
                elif all(values is None for values in sample.features.values()):
                    yield clip.audio, "there is nothing to go by, say no sound and no face"
                else:
                    constant = dict.fromkeys(sample.meta.get(CONSTANT, ()), "it never changes")
                    for modality, cause in (sample.meta.get(UNDECODABLE, {}) | constant).items():
                        logger.warning("%s: answered without its %s: %s", clip.audio, modality, cause)
                    try:
                        yield clip.audio, self.predict([sample.features])[0]
                    except NotFiniteError:
                        yield clip.audio, "the model's outputs for it are NaN or infinite, which is no answer"

    @torch.no_grad()
    def _predict(self, features: Mapping[str, Ragged]) -> list[Prediction]:
        moved = {
            m: Ragged(r.values.to(self.device), r.offsets.to(self.device), r.host_offsets)
            for m, r in features.items()
        }
        output = self.model(moved)
        probabilities = output.logits.softmax(-1).cpu()
        weights = {
            m: stream.weights.float().cpu().split(moved[m].host_lengths)
            for m, stream in output.streams.items()
        }
        names = self.model.classes
        return [
            Prediction(
                label=names[int(row.argmax())],
                probabilities=dict(zip(names, row.tolist(), strict=True)),
                weights={m: w[i].numpy() for m, w in weights.items()},
            )
            for i, row in enumerate(probabilities)
        ]


def checked(name: str, utterance: Features, dims: Mapping[str, int]) -> dict[str, NDArray[np.float32] | None]:
    """The features [T, D] of an utterance for each modality of the model's `dims`; None where it has none.

    Raises:
        ValueError: as `Predictor.predict`.
    """
    if not isinstance(utterance, Mapping):
        raise ValueError(
            f"{name} is no mapping but {type(utterance).__name__}: give features by modality, such as "
            f"{{{', '.join(f'{m!r}: [steps, {dim}]' for m, dim in dims.items())}}}"
        )
    arrays: dict[str, NDArray[np.float32] | None] = dict.fromkeys(dims)
    for modality, values in utterance.items():
        if values is None:
            continue
        if modality not in dims:
            raise ValueError(f"{name} has {modality}, but the model takes {' and '.join(dims)}")
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError):
            raise ValueError(
                f"{name}: {modality} is no array of numbers: the model takes [steps, {dims[modality]}]"
            ) from None
        if array.shape[1:] != (dims[modality],):
            raise ValueError(
                f"{name}: {modality} is {array.shape}, but the model takes [steps, {dims[modality]}]"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: {modality} holds NaN or infinite values; leave such steps out")
        arrays[modality] = array
    if not any(array is not None and len(array) for array in arrays.values()):
        raise ValueError(f"{name} has no steps in any of {list(dims)}")
    return arrays


def pack_arrays(arrays: Sequence[NDArray[Any] | None], dim: int) -> Ragged:
    """One modality's [T, dim] arrays, one after another; None is an empty one."""
    present = [np.zeros((0, dim), np.float32) if a is None else a for a in arrays]
    offsets = torch.tensor([0, *np.cumsum([len(a) for a in present]).tolist()], dtype=torch.int32)
    values = np.concatenate(present) if present else np.zeros((0, dim), np.float32)
    return Ragged(torch.from_numpy(np.ascontiguousarray(values)), offsets, offsets)
