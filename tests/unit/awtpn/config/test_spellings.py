"""Values that can be written in two ways: names of precisions, lists of words."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from awtpn.cli import main
from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import dump
from awtpn.config.settings import TrainConfig
from shards.extraction.encoders import open_audio_encoder
from shards.format.precision_names import LONG_NAMES, long_name, short_name
from shards.safe_io.json_fields import from_record
from shards.storage.store import open_dataset


@pytest.mark.parametrize(("short", "name"), [*((s, n) for s, n in LONG_NAMES.items()), ("fp16", "fp16")])
def test_a_run_takes_both_names_of_a_precision_and_records_one(short: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"train: {{precision: {name}}}")
    for words in (["--train.precision", name], [f"--train.precision={name}"], ["--config", str(file)]):
        assert dump(parse_command_line(words)[0])["train"]["precision"] == short
    assert TrainConfig(precision=name).precision == short  # type: ignore[arg-type]
    assert from_record(TrainConfig, {"precision": name}, "here").precision == short


def test_no_precision_is_named_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(["--train.precision", "fp8"])
    takes = "fp32, bf16, fp16, float32, bfloat16 or float16"
    assert capsys.readouterr().err == f"error: train.precision takes {takes}, not fp8\n"
    assert (long_name("fp8"), short_name("half"), long_name(None)) == ("fp8", "half", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fp32", "float32"])
def test_a_dataset_takes_both_and_records_the_long_one(name: str, tmp_path: Path) -> None:
    main(["pack", "-", str(tmp_path / "d"), "--format", "demo", "--dtype", name])
    _, manifest, _ = open_dataset(str(tmp_path / "d"))
    assert {modality.dtype for modality in manifest.modalities.values()} == {"float32"}
    assert manifest.provenance["command"] == f"awtpn pack - {tmp_path}/d --format demo --dtype {name}"


def test_an_encoder_takes_both(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    anything = SimpleNamespace(choices=())
    encoder = SimpleNamespace(
        attributes={"name": "x"},
        options={"dtype": anything, "device": anything},
        load=lambda: lambda **given: found.append(given["dtype"]),
    )
    monkeypatch.setattr("shards.extraction.encoders.find_encoders", lambda modality: {"x": encoder})
    for name in ("fp16", "float16", "bf16"):
        open_audio_encoder("x", dtype=name)
    assert found == ["float16", "float16", "bfloat16"]


@pytest.mark.parametrize(
    ("written", "modalities"),
    [
        ("audio", ["audio"]),
        ("audio,video", ["audio", "video"]),
        ("video, audio", ["video", "audio"]),
        ("[video]", ["video"]),
        ('["audio", "video"]', ["audio", "video"]),
    ],
)
def test_a_list_of_words_needs_no_brackets(written: str, modalities: list[str], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"model:\n  modalities: {written}\n")
    for words in (
        ["--model.modalities", written],
        [f"--model.modalities={written}"],
        ["--config", str(file)],
    ):
        assert list(parse_command_line(words)[0].model.modalities) == modalities


def test_what_is_no_list_of_words_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    for value in ("3", "{audio: 1}"):
        file.write_text(yaml.safe_dump({"model": {"modalities": yaml.safe_load(value)}}))
        for words in (["--model.modalities", value], ["--config", str(file)]):
            with pytest.raises(SystemExit):
                parse_command_line(words)
            assert re.search(r"model\.modalities(\.audio)? takes ", capsys.readouterr().err)


def test_a_weight_in_powers_of_ten(tmp_path: Path) -> None:
    # YAML takes 1e-4 for text.
    file = tmp_path / "c.yaml"
    file.write_text("model:\n  modalities:\n    text: {distance_scale: 1e-4}\n")
    for words in (
        ["--config", str(file)],
        ["--model.modalities.text.distance_scale", "1e-4"],
        ["--model.modalities.text", "{distance_scale: 1e-4}"],
    ):
        assert parse_command_line(words)[0].model.distance_scale("text") == 1e-4


def test_a_modality_without_its_value_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model:\n  modalities:\n")
    scale = "--model.modalities.text.distance_scale"
    for words, told in (
        (["--model.modalities", "--run.seed", "3"], "model.modalities lacks its value: write --model.modal"),
        ([scale], "model.modalities.text.distance_scale lacks its value"),
        (["--config", str(file)], "c.yaml, line 2: model.modalities takes names"),
        ([scale, ".nan"], "model.modalities.text.distance_scale takes a number, not nan"),
        ([scale, "1e400"], "model.modalities.text.distance_scale takes a number, not '1e400'"),
    ):
        with pytest.raises(SystemExit):
            parse_command_line(words)
        assert told in capsys.readouterr().err
