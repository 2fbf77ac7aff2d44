"""No command gives recordings to a model: each says what the dataset holds, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_support import awtpn, lines, refusal
from recordings_support import clips_of, recorded

from awtpn import Predictor
from awtpn.experiments.folds import make_splits
from awtpn.run.data import check_features_only
from shards.extraction.encoders import open_audio_encoder
from shards.extraction.extract import extract
from shards.format.recording import Recording
from shards.format.schema import Modality

SHORT = ["--model.shared_dim", 8, "--train.global_batch_size", 8, "--train.epochs", 1, "--train.min_steps", 1]
SOUND = "audio holds recordings (sound at 16000 Hz in steps of 0.1 s)"
PICTURES = "video holds recordings (pictures of 32 x 32 at 10 per second, as arrays)"
FIX = "but a model takes features: make features of them (awtpn extract {} OUT"
OF_BOTH = f"{SOUND}, and {PICTURES}, {FIX} --audio ENCODER --video ENCODER)"
OF_MIXED = (
    f"{PICTURES}, {FIX} --video ENCODER), or choose the modalities with features (--model.modalities audio)"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset `both` of recordings, and `mixed` of features of audio and recordings of video."""
    folder = tmp_path_factory.mktemp("made")
    source = clips_of(folder / "clips")
    mixed = recorded() | {"audio": open_audio_encoder("logmel")}
    for name, encoders in (("both", recorded()), ("mixed", mixed)):
        extract(source, str(folder / name), **encoders, dtype="float32", progress=False)
    return folder


@pytest.fixture(scope="module")
def run(made: Path) -> Path:
    """A run on the features of the mixed dataset alone."""
    words = ["--data.train", made / "mixed", "--model.modalities", "[audio]", "--run.dir", made / "run"]
    awtpn("train", *words, *SHORT)
    return made / "run"


def test_a_dataset_of_both_trains_on_its_features(
    made: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads((run / "results.json").read_text())["test"]["utterances"] == 2
    assert Predictor.from_pretrained(run).model.feature_dims == {"audio": 80}
    capsys.readouterr()
    awtpn("predict", run, made / "mixed")
    assert [line["key"] for line in lines(capsys.readouterr().out)] == ["sound", "pictures"]
    awtpn("evaluate", run, "--data", made / "mixed")
    assert "split test: 2 utterances" in capsys.readouterr().out
    awtpn("predict", run, made / "clips" / "sound.wav")
    assert [len(line["weights"]["audio"]) for line in lines(capsys.readouterr().out)] == [7]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", ["--run.dir", "run"]),
        ("train", ["--run.dir", "run", "--run.init_from", "RUN"]),
        ("cross-validate", ["--by", "number", "--dir", "run"]),
        ("cross-validate", ["--dir", "run"]),
        ("cross-validate", ["--dir", "run", "--sweep", "optim.lr=1e-3,1e-4"]),
        ("cross-validate", ["--baseline_only"]),
        ("ablate", ["--dir", "run", "--only", "AWM off"]),
        ("compare-models", ["--dir", "run"]),
    ],
)
def test_a_command_that_trains_refuses_recordings(
    command: str, words: list[str], made: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(run) if word == "RUN" else word for word in words]
    assert f"{made / 'both'}: {OF_BOTH.format(made / 'both')}" in refusal(
        command, "--data.train", made / "both", *given
    )
    if command == "train":
        assert f"{made / 'mixed'}: {OF_MIXED.format(made / 'mixed')}" in refusal(
            command, "--data.train", made / "mixed", *given
        )
    assert not list(tmp_path.rglob("checkpoints"))
    if command != "train":  # no run of many was begun
        assert not list(tmp_path.rglob("config.yaml"))


def test_folds_of_a_mixed_dataset_leave_the_modalities_to_the_runs(made: Path) -> None:
    """A sweep over `model.modalities` chooses them."""
    assert len(make_splits([f"--data.train={made / 'mixed'}"], "number").each) == 5
    assert make_splits([f"--data.train={made / 'mixed'}"], None).each == [None]


def test_a_run_refuses_recordings_of_each_role(made: Path, tmp_path: Path) -> None:
    words = ["train", "--data.train", made / "mixed", "--model.modalities", "[audio]", *SHORT]
    for role, split in (("val", "test"), ("test", "test")):
        told = refusal(*words, f"--data.{role}", f"{made / 'both'}#{split}", "--run.dir", tmp_path / role)
        assert f"{made / 'both'}: {SOUND}, {FIX.format(made / 'both')} --audio ENCODER)" in told


def test_a_trained_model_takes_no_recordings(made: Path, run: Path) -> None:
    told = f"{made / 'both'}: {SOUND}, {FIX.format(made / 'both')} --audio ENCODER)"
    assert told in refusal("predict", run, made / "both")
    assert told in refusal("evaluate", run, "--data", made / "both")


def test_memory_is_estimated_of_features_alone(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(json.dumps({"data": {"train": str(made / "mixed")}}))
    command = ["doctor", "--memory", tmp_path / "run.yaml", "--ranks", 1, "--device", "cpu"]
    assert f"{made / 'mixed'}: {OF_MIXED.format(made / 'mixed')}" in refusal(*command)
    awtpn(*command, "--model.modalities", "[audio]")
    assert "zero3" in capsys.readouterr().out


def test_what_is_not_chosen_is_not_refused() -> None:
    pictures = Modality(12, "uint8", Recording("frames", 10.0, [2, 2, 3], 90))
    modalities = {"audio": Modality(3, "float16"), "video": pictures}
    check_features_only({"audio": modalities["audio"]}, modalities, "data")
    with pytest.raises(ValueError, match=r"^data: video holds recordings \(pictures of 2 x 2 at 10 per sec"):
        check_features_only(modalities, modalities, "data")


def test_a_model_of_recordings_is_refused_by_name(run: Path) -> None:
    """A model of other code may have such a card. No clip is read."""
    predictor = Predictor.from_pretrained(run)
    settings = recorded()["audio"].settings
    predictor.model.provenance = {"features": {"audio": {"space": "any", "settings": settings}}}
    with pytest.raises(ValueError, match="by its card the model takes recordings of audio, and no model"):
        predictor.predict_recordings(["clip.mp4"])
