"""From a trained model to answers: labels, probabilities and which steps they rest on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from awtpn.checkpoint import find_model
from awtpn.model import AWTPN
from shards import FeatureStream, Ragged

Features = Mapping[str, NDArray[Any] | None]


@dataclass(frozen=True)
class Prediction:
    """One utterance's answer."""

    label: str
    probabilities: dict[str, float]  # by class name; they sum to 1
    weights: dict[str, NDArray[np.float32]]  # per modality the steps' reliability weights [T]; they sum to 1

    def as_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "probabilities": {name: round(p, 6) for name, p in self.probabilities.items()},
            "weights": {m: [round(float(w), 6) for w in weights] for m, weights in self.weights.items()},
        }


class Predictor:
    """A trained model that takes features of utterances of any lengths.

        predictor = Predictor.from_pretrained("runs/demo")
        answers = predictor.predict([{"audio": a, "video": v}, {"audio": b, "video": None}])

    Features are what the model was trained on, not standardised: the model does that itself.
    """

    def __init__(self, model: AWTPN, device: torch.device | str = "cpu") -> None:
        self.model = model.to(device).eval()
        self.device = torch.device(device)

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: torch.device | str = "cpu") -> Predictor:
        """Load an export, a checkpoint, or a run's best checkpoint.

        Raises:
            ValueError: the folder is none of these.
        """
        return cls(AWTPN.from_pretrained(find_model(Path(directory))), device)

    def predict(self, utterances: Sequence[Features]) -> list[Prediction]:
        """Predict for utterances of different lengths at once.

        Args:
            utterances: per utterance a [T, D] array per modality; None or T = 0 where it is missing.

        Raises:
            ValueError: an array has the wrong shape, or an utterance has no steps at all.
        """
        for i, utterance in enumerate(utterances):
            self._check(i, utterance)
        features = {
            m: pack_arrays([utterance.get(m) for utterance in utterances], dim)
            for m, dim in self.model.feature_dims.items()
        }
        return self._predict(features)

    def predict_stream(self, stream: FeatureStream) -> Iterator[tuple[str, Prediction]]:
        """(key, prediction) for every utterance of an unshuffled stream."""
        for batch in stream.epoch(0):
            yield from zip(batch.key, self._predict(batch.features), strict=True)

    def _check(self, i: int, utterance: Features) -> None:
        arrays = {m: utterance.get(m) for m in self.model.feature_dims}
        for modality, array in arrays.items():
            dim = self.model.feature_dims[modality]
            if array is not None and (array.ndim != 2 or array.shape[1] != dim):
                raise ValueError(
                    f"utterance {i}: {modality} is {array.shape}, but the model takes [steps, {dim}]"
                )
        if not any(array is not None and len(array) for array in arrays.values()):
            raise ValueError(f"utterance {i} has no steps in any of {list(arrays)}")

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


def pack_arrays(arrays: Sequence[NDArray[Any] | None], dim: int) -> Ragged:
    """One modality's [T, dim] arrays, one after another; None is an empty one."""
    present = [np.zeros((0, dim), np.float32) if a is None else a for a in arrays]
    offsets = torch.tensor([0, *np.cumsum([len(a) for a in present]).tolist()], dtype=torch.int32)
    values = np.concatenate(present) if present else np.zeros((0, dim), np.float32)
    return Ragged(torch.from_numpy(np.ascontiguousarray(values)), offsets, offsets)
