"""Models with encoders, small and not trained, whose trained weights differ from those of the base models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encoders_in_models_support import PICTURES, SOUND, clips, sounds
from encoders_support import AUDIO, VIDEO
from support import CLASSES

from awtpn.distributed.engines.single import SINGLE
from awtpn.inference.predictor import Predictor
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.settings import OptimConfig
from awtpn.model.base import EmotionModel
from awtpn.model.encoders.opening import open_encoder
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.model.models import build_model
from awtpn.model.settings import ModelConfig
from awtpn.model.sharing.hub import HUB_ID
from awtpn.run import checkpoint
from awtpn.run.position import Position
from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.format.feature_space import extraction_provenance
from shards.format.recording import Recording

KINDS = {"audio": "wav2vec2", "video": "vit"}
TUNES = {"audio": "lora", "video": "last-1-layers"}
RECORDINGS = {"audio": SOUND, "video": PICTURES}


def base_models(folder: Path) -> dict[str, Path]:
    """A base model of each modality."""
    made = {"audio": AUDIO, "video": VIDEO}
    return {m: made[m][kind](folder / f"base-{m}") for m, kind in KINDS.items()}


def finetuned(
    bases: Mapping[str, Path | str],
    tunes: Mapping[str, str] = TUNES,
    recordings: Mapping[str, Recording] = RECORDINGS,
    name: str = "awtpn",
    moved: bool = True,
    **settings: Any,
) -> EmotionModel:
    """A model with encoders, whose trained weights were moved away from their beginning, or not."""
    torch.manual_seed(3)
    encoders = {
        m: open_encoder(m, EncoderSettings(str(base), tune=tunes[m], **settings), recordings[m])
        for m, base in bases.items()
    }
    config = ModelConfig(shared_dim=8, dropout=0.0, modalities=list(bases), name=name)  # type: ignore[arg-type]
    dims = {m: encoder.dim for m, encoder in encoders.items()}
    model = build_model(config, dims, CLASSES, encoders=encoders)
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if moved and weight_name in model.trained_of_encoders():
                weight.add_(0.05 * torch.randn(weight.shape))
    model.provenance = extraction_provenance(
        {
            m: (open_audio_encoder("waveform") if m == "audio" else open_video_encoder("frames", side=32))
            for m in bases
        }
    )
    return model.eval()


def saved(model: EmotionModel, run: Path) -> Path:
    """Save a model as the only checkpoint of a run; returns the checkpoint."""
    optimizer = make_optimizer(model, OptimConfig())
    position = Position(step=1, epoch=0, epoch_step=1, streams=1)
    card = model.card() | {"dataset": "talks"}
    return checkpoint.save(
        run / "checkpoints", model, optimizer, position, card, is_main=True, best=True, engine=SINGLE
    )


def utterances(count: int = 3) -> list[dict[str, np.ndarray | None]]:
    """Recordings of different lengths; the second has no pictures."""
    sound = sounds(*[4000 + 3100 * i for i in range(count)])
    pictures = clips(*[2 + i for i in range(count)])
    return [{"audio": s, "video": None if i == 1 else p} for i, (s, p) in enumerate(zip(sound, pictures))]  # noqa: B905


def answers(model: EmotionModel) -> np.ndarray:
    """Probabilities [utterances, classes] of `utterances()`."""
    found = Predictor(model).predict(utterances())
    return np.array([list(answer.probabilities.values()) for answer in found])


def tells(folder: Path, text: str) -> list[str]:
    """The files of a folder that hold a text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if text.encode() in path.read_bytes()]


def on_hub(bases: Mapping[str, Path], monkeypatch: Any) -> dict[str, str]:
    """Make the base models available as those of a hub; returns their ids."""
    import huggingface_hub

    commits: dict[str, str] = {}
    for number, (modality, folder) in enumerate(bases.items()):
        commit = folder.parent / (str(number) * 40)
        commit.symlink_to(folder.name)
        commits[f"someone/{modality}-base"] = str(commit)
    assert all(map(HUB_ID.fullmatch, commits))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda spec, **_: commits[spec])
    return {m: f"someone/{m}-base" for m in bases}
