"""The configurations of the corpora take what their sources make."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora_support import write_iemocap, write_meld, write_mosei
from support import REPO

import shards
from awtpn.experiments.folds import make_splits
from awtpn.model.network import AWTPN
from awtpn.training.trainer import main as train
from shards import Sample
from shards.format.schema import BadSample
from shards.format.targets import Target
from shards.sources import iemocap, meld, mosei
from shards.sources.base import Clip, ClipSource

CONFIGS = REPO / "configs"
SHORT = ["--train.max_steps", "2", "--model.shared_dim", "8", "--train.global_batch_size", "8"]


def made_up(source: ClipSource) -> Iterator[Sample]:
    """Its clips with features of noise, as an extraction would pack them."""
    rng = np.random.default_rng(0)
    for clip in source.clips:
        if isinstance(clip, Clip):
            features: dict[str, np.ndarray | None] = {"audio": rng.normal(size=(6, 4)).astype(np.float32)}
            features["video"] = rng.normal(size=(3, 5)).astype(np.float32)
            yield Sample(clip.key, clip.split, clip.label, features, clip.meta)


def pack_iemocap(folder: Path) -> str:
    source = iemocap.read(write_iemocap(folder / "corpus", sessions=range(1, 6)))
    shards.pack(made_up(source), str(folder / "packed"), classes=source.classes, progress=False)
    return str(folder / "packed")


def pack_meld(folder: Path) -> str:
    source = meld.read(write_meld(folder / "corpus"))
    shards.pack(made_up(source), str(folder / "packed"), classes=source.classes, progress=False)
    return str(folder / "packed")


def pack_mosei(folder: Path) -> str:
    source = mosei.read(
        write_mosei(folder / "corpus"),
        audio="CMU_MOSEI_COVAREP.csd",
        video="CMU_MOSEI_VisualOpenFace2.csd",
        folds="cmu_mosei_std_folds.py",
    )
    shards.pack(source.samples, str(folder / "packed"), classes=source.classes, progress=False)
    return str(folder / "packed")


@pytest.mark.parametrize("corpus", ["iemocap", "meld", "mosei"])
def test_a_corpus_trains_by_its_configuration(tmp_path: Path, corpus: str) -> None:
    packed = {"iemocap": pack_iemocap, "meld": pack_meld, "mosei": pack_mosei}[corpus](tmp_path)
    run = tmp_path / "run"
    train(
        ["--config", str(CONFIGS / f"{corpus}.yaml"), "--data.train", packed, "--run.dir", str(run), *SHORT]
    )
    results = json.loads((run / "results.json").read_text())
    tested = np.sum(results["test"]["confusion_matrix"])
    # IEMOCAP: the turns of Session5 that four classes know. MELD and MOSEI: their own test splits.
    assert tested == {"iemocap": 10, "meld": 2, "mosei": 2}[corpus]


def with_values(samples: Iterable[Sample | BadSample], target: Target) -> Iterator[Sample]:
    """The same utterances with two values of each column: those of the stand-ins hardly differ."""
    for i, sample in enumerate(samples):
        assert isinstance(sample, Sample)
        values = {
            name: (bounds[0], bounds[1])[(i + k) % 2] if bounds else None
            for k, (name, bounds) in enumerate(target.columns.items())
        }
        yield replace(sample, meta={**sample.meta, **values})


def pack_iemocap_vad(folder: Path) -> str:
    source = iemocap.read(write_iemocap(folder / "corpus", sessions=range(1, 6)), target="vad")
    samples = with_values(made_up(source), source.target)
    return pack_values(samples, source.target, source.targets, folder)


def pack_all_of_mosei(folder: Path, varied: str) -> str:
    source = mosei.read(
        write_mosei(folder / "corpus"),
        audio="CMU_MOSEI_COVAREP.csd",
        video="CMU_MOSEI_VisualOpenFace2.csd",
        folds="cmu_mosei_std_folds.py",
        target="sentiment",
    )
    samples = with_values(source.samples, source.targets[varied])
    return pack_values(samples, source.target, source.targets, folder)


def pack_values(samples: Iterator[Sample], target: Target, targets: dict[str, Target], folder: Path) -> str:
    out = str(folder / "packed")
    shards.pack(samples, out, classes=[], target=target, targets=targets, progress=False)
    return out


@pytest.mark.parametrize("name", ["mosei-sentiment", "mosei-emotions", "iemocap-vad"])
def test_values_and_labels_of_a_corpus_train_by_their_configuration(tmp_path: Path, name: str) -> None:
    corpus, _, target = name.partition("-")
    packed = pack_iemocap_vad(tmp_path) if corpus == "iemocap" else pack_all_of_mosei(tmp_path, target)
    run = tmp_path / "run"
    train(["--config", str(CONFIGS / f"{name}.yaml"), "--data.train", packed, "--run.dir", str(run), *SHORT])
    test = json.loads((run / "results.json").read_text())["test"]
    # All turns of Session5, also those of other classes.
    assert test["utterances"] == {"iemocap": 16, "mosei": 2}[corpus]
    columns = {
        "mosei-sentiment": ["sentiment"],
        "mosei-emotions": ["happy", "sad", "anger", "surprise", "disgust", "fear"],
        "iemocap-vad": ["valence", "activation", "dominance"],
    }[name]
    assert list(test["per_label" if target == "emotions" else "per_dimension"]) == columns
    assert ("Acc-7" in test) == (target == "sentiment")
    model = AWTPN.from_pretrained(run / "checkpoints" / "latest")
    assert model.task.levels == {"sentiment": 7, "emotions": 0, "vad": 11}[target]


def test_iemocap_is_left_out_by_session(tmp_path: Path) -> None:
    packed = pack_iemocap(tmp_path)
    training = ["--config", str(CONFIGS / "iemocap.yaml"), "--data.train", packed]
    splits = make_splits(training, "session")
    assert [fold.test for fold in splits.folds] == ["Ses01", "Ses02", "Ses03", "Ses04", "Ses05"]
    [trial] = splits.of_fold(splits.folds[1], training, [0], tmp_path / "runs")
    train([*trial.job.arguments, *SHORT])
    results = json.loads((trial.job.run_dir / "results.json").read_text())
    # Both dialogs of the second session have a picture.
    assert np.sum(results["test"]["confusion_matrix"]) == 10
