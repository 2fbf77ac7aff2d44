"""The section `encoder`: a map of a file, in which words of the command line change single settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from awtpn.config import command_line
from awtpn.config.schema import Config, dump_yaml
from awtpn.model.encoders.settings import EncoderSettings
from awtpn.run.folder import changed_keys, is_fixed
from awtpn.run.record import CONFIG_FILE

FILE = """
data: {train: here}
encoder:
  audio: {model: facebook/hubert-base-ls960, tune: lora, lr: 1e-4}
  video: {model: openai/clip-vit-base-patch32, tune: frozen}
"""


@pytest.fixture
def file(tmp_path: Path) -> list[str]:
    (tmp_path / "c.yaml").write_text(FILE)
    return ["--config", str(tmp_path / "c.yaml")]


def read(*words: str) -> Config:
    return command_line.parse_command_line(words)[0]


def test_a_word_changes_one_setting_of_a_file(file: list[str]) -> None:
    changed = read(*file, "--encoder.audio.tune", "full", "--encoder.video.lr_decay=0.9").encoder
    audio = EncoderSettings("facebook/hubert-base-ls960", tune="full", lr=1e-4)
    assert changed["audio"] == audio
    assert changed["video"] == EncoderSettings("openai/clip-vit-base-patch32", tune="frozen", lr_decay=0.9)
    assert list(changed) == ["audio", "video"]
    assert read("--encoder.audio.tune", "full", *file).encoder["audio"] == audio, "words rule over the file"
    assert read(*file).encoder["audio"].tune == "lora"


def test_words_alone_make_an_encoder_and_take_one_away(file: list[str]) -> None:
    words = ["--data.train=d", "--encoder.audio.model=m", "--encoder.audio.lora_rank", "4"]
    assert read(*words).encoder == {"audio": EncoderSettings("m", lora_rank=4)}
    assert list(read(*file, "--encoder.video", "null").encoder) == ["audio"]
    assert read(*file, "--encoder", "{}").encoder == {}
    whole = read(*file, "--encoder={audio: {model: n}}", "--encoder.audio.lr=3e-5").encoder
    assert whole == {"audio": EncoderSettings("n", lr=3e-5)}


def test_what_is_recorded_reads_back(file: list[str], tmp_path: Path) -> None:
    config = read(*file, "--encoder.audio.pass_seconds", "30")
    (tmp_path / CONFIG_FILE).write_text(dump_yaml(config))
    assert read("--config", str(tmp_path / CONFIG_FILE)).encoder == config.encoder
    assert changed_keys(config, tmp_path) == []


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--encoder.audio.tuen", "full"], r"there is no encoder\.audio\.tuen; an encoder has model, "),
        (["--encoder.audio.tune", "some"], r"encoder\.audio\.tune is 'some'; it is frozen, lora, full or"),
        (["--encoder.audio.tune", "last-0-layers"], r"encoder\.audio\.tune is 'last-0-layers'"),
        (["--encoder.audio.tune"], r"encoder\.audio\.tune lacks its value"),
        (["--encoder.audio.tune", "--run.seed", "1"], r"encoder\.audio\.tune lacks its value"),
        (["--encoder.audio.lr", "fast"], r"encoder\.audio\.lr cannot be 'fast'"),
        (["--encoder.audio.lr", "-1"], r"encoder\.audio\.lr must be at least"),
        (["--encoder.audio.lr_decay", "2"], r"encoder\.audio\.lr_decay must be from 1e-06 to 1, not 2"),
        (["--encoder.audio.pass_pictures", "1.5"], r"encoder\.audio\.pass_pictures"),
        (["--encoder.audio.checkpointing", "3"], r"encoder\.audio\.checkpointing"),
        (["--encoder.text.model", "m"], r"encoder\.text is given, but text is not among model\.modalities"),
        (["--encoder.audio", "hubert"], r"encoder\.audio takes settings such as"),
        (["--encoder", "5"], r"encoder takes encoders by modality"),
        (["--encoder.video.model", "null"], r"encoder\.video\.model"),
        (["--loss.negatives", "reference"], r"loss\.negatives=reference .* encoders cut these by length"),
        (["--train.compile", "true"], r"train\.compile=true does not compile encoders"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_named(
    file: list[str], words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, ValueError)) as refused:
        read(*file, *words)
    told = capsys.readouterr().err.strip() or str(refused.value)
    assert re.search(error, told), told
    assert len(told.splitlines()) <= 2


def test_an_encoder_without_a_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, ValueError)) as refused:
        read("--data.train=d", "--encoder.audio.tune", "full")
    assert "encoder.audio.model is missing" in capsys.readouterr().err + str(refused.value)


@pytest.mark.parametrize(
    ("word", "fixed"),
    [
        ("tune=full", True),
        ("lr=3e-4", True),
        ("lr_decay=0.9", True),
        ("weight_decay=0", True),
        ("dropout=0.2", True),
        ("layer=6", True),
        ("lora_rank=4", True),
        ("freeze_features=false", True),
        ("pass_seconds=10", False),
        ("pass_pictures=3", False),
        ("max_padding=0.5", False),
        ("checkpointing=true", False),
        ("model=/elsewhere/hubert", False),
    ],
)
def test_what_changes_the_training_must_not_change_in_a_resumed_run(
    file: list[str], word: str, fixed: bool, tmp_path: Path
) -> None:
    (tmp_path / CONFIG_FILE).write_text(dump_yaml(read(*file)))
    key = f"encoder.audio.{word.partition('=')[0]}"
    assert changed_keys(read(*file, f"--encoder.audio.{word}"), tmp_path) == [key]
    assert is_fixed(key) == fixed
