"""Predict with a trained model: a class, labels or values, and the reliability weights of the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from awtpn.inference.inputs import (
    Features,
    as_stored,
    check_features,
    check_made,
    pack_recordings,
    storing_encoder,
)
from awtpn.inference.intervals import half_widths, results_of_run
from awtpn.inference.prediction import Prediction, make_predictions
from awtpn.inference.recording import TEXT, clip_of, text_clip
from awtpn.model.base import EmotionModel
from awtpn.model.device import resolve_device
from awtpn.model.encoders.passes import parts_of
from awtpn.model.finite_outputs import NotFiniteError, describe_not_finite
from awtpn.model.models import load_model
from awtpn.model.sharing.model_card import MADE_UP
from shards import BadSample, FeatureStream, Ragged, Sample
from shards.extraction.pipeline import UNDECODABLE, DecodedClip, decode_ahead, encode
from shards.extraction.reopen_encoder import reopen_encoder
from shards.format.feature_space import CONSTANT, recorded_constant, reopenable
from shards.safe_io.printable import get_logger, listed
from shards.sources.base import Clip
from shards.sources.reading.transcripts import Transcript

logger = get_logger(__name__)


class Predictor:
    """A trained model that predicts for utterances of any length.

        predictor = Predictor.from_pretrained("runs/demo")
        predictions = predictor.predict([{"audio": a, "video": v}, {"audio": b, "video": None}])

    Features are of the kind that the model was trained on, not standardized: the model standardizes them. If
    `awtpn extract` made the training features, the predictor takes recordings as well:

        predictor.predict_recordings(["clip.mp4"], texts=["What a day!"])
        predictor.predict_texts(["What a day!"])

    Of a modality with an encoder in the model, `predict` takes recordings in place of features: sound
    int16 [samples] or pictures uint8 [N, height, width, 3], of the rate and size in `model.recordings`.

    What a `Prediction` holds depends on the model's task: one model has one task. For values it has 90 %
    prediction intervals if the model was validated. The validation utterances also chose the checkpoint, so
    slightly less than 90 % of true values lie within them; `awtpn.inference.intervals` says how they are
    made. Of a baseline (`model.name`) the predictions have no reliability weights.
    """

    def __init__(
        self,
        model: EmotionModel,
        device: torch.device | str = "cpu",
        results: Mapping[str, Any] | None = None,
        encoders: Mapping[str, str | Path] | None = None,
    ) -> None:
        """Move `model` to `device` and put it in eval mode, in place.

        Args:
            model: to predict with.
            device: to predict on.
            results: of the model, as in results.json: the intervals of values are made of its validation
                figures. Default: those in the model's card, which an export has.
            encoders: by modality where the model of an encoder of the training features is now, if it has
                moved since the extraction.
        """
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self.half_widths = half_widths(results or model.record.get("results"), model.task)
        self._moved = {m: str(place) for m, place in (encoders or {}).items()}
        self._encoders: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        device: torch.device | str = "cpu",
        encoders: Mapping[str, str | Path] | None = None,
    ) -> Predictor:
        """Load an export, a checkpoint, a run's best checkpoint, or a model of the Hugging Face Hub.

        A line is logged if it predicts values of which the intervals are not known.

        Args:
            directory: the folder; or, if no such path exists, a hub id "user/model".
            device: "cpu", "cuda", "cuda:1".
            encoders: by modality where the files of an encoder are now, if they were moved: of the base model
                of one within the model, or of the model that made the training features.

        Raises:
            ValueError: there is no such model or device, or the model's encoders are not there.
        """
        model, where = load_model(directory, encoders), resolve_device(device)
        moved = {m: place for m, place in (encoders or {}).items() if m not in model.encoders}
        if model.task.type != "regression" or model.record.get("results"):
            predictor, note = cls(model, where, encoders=moved), None
        else:
            stored = results_of_run(directory)
            predictor, note = cls(model, where, stored.results, moved), stored.note
        if unknown := [name for name, half in predictor.half_widths.items() if half is None]:
            cause = note or "there are no results of enough validation utterances"
            logger.warning("%s: no intervals of %s: %s", directory, listed(unknown), cause)
        return predictor

    def predict(self, utterances: Sequence[Features]) -> list[Prediction]:
        """Predict for utterances of different lengths at once.

        Args:
            utterances: per utterance [T, F] of each modality, an array or what NumPy converts to one; None or
                T = 0 if the modality is missing. Of a modality with an encoder, recordings (see the class).

        Returns:
            One prediction per utterance, in the same order.

        Raises:
            ValueError: features have the wrong shape or are not finite, the model has no such modality, or an
                utterance has no steps at all; names the utterance by its index, and the modality.
            NotFiniteError: the model's outputs for some utterances are not finite; names their indices.
        """
        if isinstance(utterances, Mapping):
            raise ValueError(
                "predict takes a list of utterances: for a single one write predict([utterance])"
            )
        dims, recordings = self.model.feature_dims, self.model.recordings
        arrays = [
            check_features(f"utterance {i}", utterance, dims, recordings)
            for i, utterance in enumerate(utterances)
        ]
        features = {
            m: pack_recordings([of[m] for of in arrays], recordings[m])
            if m in recordings
            else pack_arrays([of[m] for of in arrays], dim)
            for m, dim in dims.items()
        }
        predictions = self._predict(features)
        if broken := [f"utterance {i}" for i, found in enumerate(predictions) if not found.is_finite]:
            raise NotFiniteError(describe_not_finite(broken, len(broken), len(predictions)))
        return predictions

    def predict_stream(self, stream: FeatureStream) -> Iterator[tuple[str, Prediction]]:
        """(key, prediction) for each of this rank's utterances of a stream's epoch 0, in its order.

        Raises:
            ValueError, OSError: as `shards.FeatureStream.epoch` does.
            NotFiniteError: the model's outputs for some utterances of the next batch are not finite.
        """
        seen = 0
        for batch in stream.epoch(0):
            predictions, seen = self._predict(batch.features), seen + len(batch)
            if broken := [k for k, found in zip(batch.key, predictions, strict=True) if not found.is_finite]:
                where = f"{stream.url}, split {stream.split}"
                raise NotFiniteError(f"{where}: {describe_not_finite(broken, len(broken), seen)}")
            yield from zip(batch.key, predictions, strict=True)

    def encoders(self, device: str | None = None, **moved: str | None) -> dict[str, Any]:
        """The encoders that made the training features, by modality; opened at the first call, then cached.

        Of a modality with an encoder within the model it is the one that stored the recordings, or, of a
        made-up corpus, that stores a clip in the same form.

        Args:
            device: where encoders run; default the model's.
            moved: by modality, the new location of an encoder's model that has moved since the extraction.

        Raises:
            ValueError: how the features were made is not recorded, they are not what the model takes, or an
                encoder is no longer available.
        """
        if not self._encoders:
            recorded = reopenable(self.model.provenance)
            is_made_up = (self.model.provenance or {}).get("format") in MADE_UP
            opened = {m: storing_encoder(r) for m, r in self.model.recordings.items() if is_made_up}
            if missing := [m for m in self.model.feature_dims if m not in {**recorded, **opened}]:
                raise ValueError(
                    f"how the model's features of {listed(missing)} were made is not recorded, so they "
                    "cannot be extracted from a recording: give a dataset of such features, or train a model "
                    "on one that `awtpn extract` made"
                )
            where = device or str(self.device)
            opened |= {
                m: reopen_encoder(m, recorded[m]["settings"], where, moved.get(m) or self._moved.get(m))
                for m in self.model.feature_dims
                if m in recorded
            }
            check_made(opened, self.model.recordings)
            self._encoders = {m: opened[m] for m in self.model.feature_dims}
        return self._encoders

    def predict_recordings(
        self, paths: Sequence[str | Path], texts: Sequence[str | Transcript | None] | None = None
    ) -> list[Prediction]:
        """Predict for recordings, with features extracted as the training features were.

        Args:
            paths: of the recordings; a `.txt` file is text alone.
            texts: what is said in each; None for one, or for all: what the `.txt` file beside it says.

        Raises:
            ValueError: a recording cannot be used (names the file), or as `encoders`.
        """
        predictions = []
        for path, result in self.iter_recordings(paths, texts):
            if isinstance(result, str):
                raise ValueError(result if str(path) in result else f"{path}: {result}")
            predictions.append(result)
        return predictions

    def predict_texts(self, texts: Sequence[str | Transcript]) -> list[Prediction]:
        """Predict for what is said alone.

        Raises:
            ValueError: the model does not take text, a text cannot be used (names its index), or as
                `encoders`.
        """
        if isinstance(texts, str):
            raise ValueError(
                "predict_texts takes a list of texts: for a single one write predict_texts([text])"
            )
        self.check_takes_text()
        predictions = []
        for clip, result in self.iter_clips([text_clip(text, f"text {i}") for i, text in enumerate(texts)]):
            if isinstance(result, str):
                raise ValueError(f"{clip.key}: {result}")
            predictions.append(result)
        return predictions

    def iter_recordings(
        self,
        paths: Sequence[str | Path],
        texts: Sequence[str | Transcript | None] | None = None,
        batch: int = 16,
        threads: int = 4,
    ) -> Iterator[tuple[Path, Prediction | str]]:
        """(path, prediction) for each recording; for one that cannot be used, (path, cause).

        Args:
            paths, texts: as of `predict_recordings`.
            batch: recordings that an encoder takes at once.
            threads: that decode.

        Raises:
            ValueError: a text is given that cannot be used, or there are not as many texts as paths.
        """
        given = [None] * len(paths) if texts is None else texts
        if isinstance(given, str) or len(given) != len(paths):
            raise ValueError(f"texts must be a list with an entry for each of the {len(paths)} recordings")
        if any(text is not None for text in given):
            self.check_takes_text()
        files = [Path(path) for path in paths]
        clips = [
            clip_of(path, text, wants_text=self.takes_text) for path, text in zip(files, given, strict=True)
        ]
        for path, (_, answer) in zip(files, self.iter_clips(clips, batch, threads), strict=True):
            yield path, answer

    @property
    def step_seconds(self) -> dict[str, float]:
        """Seconds of a time step of the weights, by modality; words have none."""
        # Of a modality with an encoder within the model, of this one, and not of the recording.
        made: dict[str, Any] = self.encoders() | dict(self.model.encoders.items())
        return {m: float(e.step_seconds) for m, e in made.items() if hasattr(e, "step_seconds")}

    @property
    def takes_text(self) -> bool:
        """Whether text is a modality of the model."""
        return TEXT in self.model.feature_dims

    def check_takes_text(self) -> None:
        """Raise ValueError if text is not a modality of the model."""
        if not self.takes_text:
            raise ValueError(f"the model takes {listed(self.model.feature_dims)}, and no text: leave it out")

    def iter_clips(
        self,
        clips: Sequence[Clip],
        batch: int = 16,
        threads: int = 4,
        on_missing: Callable[[Clip, str, str], None] | None = None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> Iterator[tuple[Clip, Prediction | str]]:
        """(clip, prediction) for each clip; for one that cannot be used, (clip, cause).

        Args:
            clips: of `inference.recording`; their keys name them in logs.
            batch, threads: as of `iter_recordings`.
            on_missing: called with clip, modality and cause for each modality that a clip lacks; default:
                they are logged.
            on_stage: called with "encoding" when a clip is decoded, and with "predicting" when it is encoded.
        """
        on_missing = on_missing or log_missing
        encoders, recordings = self.encoders(), self.model.recordings
        keep_constant, _ = recorded_constant(self.model.provenance)

        def told(decoded: Iterable[DecodedClip]) -> Iterator[DecodedClip]:
            for each in decoded:
                on_stage("encoding")
                yield each

        with closing(decode_ahead(clips, encoders, threads, keep_constant)) as decoded:
            for clip, sample in zip(clips, encode(told(decoded), encoders, batch), strict=True):
                on_stage("predicting")
                if isinstance(sample, BadSample):
                    yield clip, sample.cause
                    continue
                if all(values is None for values in sample.features.values()):
                    yield clip, f"no features of {listed(encoders)} can be made of it"
                    continue
                for modality, cause in missing_modalities(sample).items():
                    on_missing(clip, modality, cause)
                try:
                    given = sample.features | {
                        m: as_stored(sample.features[m], recording) for m, recording in recordings.items()
                    }
                    yield clip, self.predict([given])[0]
                except NotFiniteError:
                    yield clip, "the model's outputs for it are NaN or infinite"

    @torch.no_grad()
    def _predict(self, features: Mapping[str, Ragged]) -> list[Prediction]:
        """Of each utterance, in their order; with encoders in passes of bounded work."""
        count = len(next(iter(features.values())))
        if not len(self.model.encoders):
            return self._predict_at_once(features)
        found: dict[int, Prediction] = {}
        for rows in parts_of(self.model, features, [range(count)]):
            of_pass = self._predict_at_once({m: ragged.take(rows) for m, ragged in features.items()})
            found |= zip(rows, of_pass, strict=True)
        return [found[i] for i in range(count)]

    def _predict_at_once(self, features: Mapping[str, Ragged]) -> list[Prediction]:
        moved = {m: ragged.to(self.device) for m, ragged in features.items()}
        moved = self.model.encoded(moved)
        output = self.model(moved)
        weights = {
            m: stream.weights.float().cpu().split(moved[m].host_lengths)
            for m, stream in output.streams.items()
        }
        return make_predictions(output.logits, weights, self.model.task, self.half_widths)


def log_missing(clip: Clip, modality: str, cause: str) -> None:
    """Log that a clip is predicted without a modality."""
    logger.warning("%s: predicted without its %s: %s", clip.key, modality, cause)


def missing_modalities(sample: Sample) -> dict[str, str]:
    """Why each modality that a sample lacks is missing."""
    causes = sample.meta.get(UNDECODABLE, {}) | dict.fromkeys(sample.meta.get(CONSTANT, ()), "it is constant")
    lacking = [modality for modality, values in sample.features.items() if values is None]
    return {modality: causes.get(modality, "no features can be made of it") for modality in lacking}


def pack_arrays(arrays: Sequence[NDArray[Any] | None], dim: int) -> Ragged:
    """Pack one modality's [T, dim] arrays into a Ragged; None stands for an empty array."""
    filled = [np.zeros((0, dim), np.float32) if a is None else a for a in arrays]
    offsets = torch.tensor([0, *np.cumsum([len(a) for a in filled]).tolist()], dtype=torch.int32)
    values = np.concatenate(filled) if filled else np.zeros((0, dim), np.float32)
    return Ragged(torch.from_numpy(np.ascontiguousarray(values)), offsets, offsets)
