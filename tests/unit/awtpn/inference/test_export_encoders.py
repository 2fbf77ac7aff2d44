"""Exports of models with encoders: whole ones need nothing else, and no export tells of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import awtpn, refusal
from encoders_in_models_support import opened
from finetuned_support import answers, base_models, finetuned, on_hub, saved, tells
from support import small_model

from awtpn.inference.export import export
from awtpn.inference.predictor import Predictor
from awtpn.model.encoders.readme import read_licence
from awtpn.model.files import CARD_FILE, CHECKSUMS_FILE, README_FILE, WEIGHTS_FILE, fingerprint, read_weights
from awtpn.model.models import load_model

APACHE = "---\nlicense: apache-2.0\n---\nA base model.\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Path]:
    """A run, what it answers, and its whole export in a place of its own; the base models are gone."""
    root = tmp_path_factory.mktemp("machine")
    bases = base_models(root)
    (bases["audio"] / "README.md").write_text(APACHE)
    model = finetuned(bases)
    saved(model, root / "run")
    expected = answers(model)
    awtpn("export", root / "run", root / "out", "--merge")
    awtpn("export", root / "run", root / "parts")
    place = tmp_path_factory.mktemp("elsewhere")
    for name in ("out", "parts"):
        shutil.move(root / name, place / name)
    for base in bases.values():
        base.rename(base.with_name(f"moved-{base.name}"))
    return root, expected, place


def test_a_whole_export_needs_nothing_else(made: tuple[Path, np.ndarray, Path]) -> None:
    _, expected, place = made
    model = load_model(place / "out")
    np.testing.assert_allclose(answers(model), expected, atol=1e-5)
    assert not any(name.startswith("encoders.") for name in read_weights(place / "out" / WEIGHTS_FILE))
    card = json.loads((place / "out" / CARD_FILE).read_text())["encoders"]
    for modality, tune in (("audio", "lora"), ("video", "last-1-layers")):
        record, folder = card[modality], place / "out" / "encoders" / modality
        assert record["folder"] == f"encoders/{modality}"
        assert record["config"]["model"] == f"encoders/{modality}"
        assert record["config"]["tune"] == "frozen"
        assert record["base"]["tune"] == tune
        assert record["base"]["id"] == f"base-{modality}"
        assert record["base"]["sha256"] != record["settings"]["sha256"]
        # What anybody else makes of the folder.
        assert opened(modality, folder).settings["sha256"] == record["settings"]["sha256"]
    assert card["audio"]["licence"] == "apache-2.0"
    assert read_licence(place / "out" / "encoders" / "audio") == "apache-2.0"
    assert model.record["dataset"] == "talks"


def test_checksums_cover_the_encoders(made: tuple[Path, np.ndarray, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(made[2] / "out", tmp_path / "out"))
    files = json.loads((out / CHECKSUMS_FILE).read_text())["files"]
    within = {
        f"encoders/{modality}/{name}"
        for modality in ("audio", "video")
        for name in ("config.json", "model.safetensors", "preprocessor_config.json")
    }
    assert files == {name: fingerprint(out / name) for name in {WEIGHTS_FILE, CARD_FILE, *within}}
    for name in sorted(within):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        with pytest.raises(ValueError, match=f"{name} is not the file that was exported"):
            load_model(out)
        (out / name).write_bytes(whole)
    (out / CHECKSUMS_FILE).unlink()
    (out / "encoders" / "video" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="another sha256"):
        load_model(out)
    shutil.rmtree(out / "encoders" / "video")
    with pytest.raises(ValueError, match="encoders/video beside the card, and that is not there"):
        load_model(out)


def test_an_export_of_parts_needs_the_base_models(made: tuple[Path, np.ndarray, Path]) -> None:
    root, expected, place = made
    told = "trained from 'base-audio', a folder of another machine: get that model's files, and name their"
    with pytest.raises(ValueError, match=told):
        load_model(place / "parts")
    moved = {m: root / f"moved-base-{m}" for m in ("audio", "video")}
    np.testing.assert_allclose(
        answers(Predictor.from_pretrained(place / "parts", encoders=moved).model), expected, atol=1e-6
    )
    with pytest.raises(ValueError, match="its encoder is part of the model; do not name another"):
        load_model(place / "out", {"audio": moved["audio"]})
    size = {name: (place / name / WEIGHTS_FILE).stat().st_size for name in ("out", "parts")}
    assert size["out"] < size["parts"] < size["out"] + 60_000


def test_an_export_can_be_exported_again(made: tuple[Path, np.ndarray, Path], tmp_path: Path) -> None:
    root, expected, place = made
    export(place / "out", tmp_path / "again")
    model = load_model(tmp_path / "again")
    np.testing.assert_allclose(answers(model), expected, atol=1e-5)
    first, second = (json.loads((at / CARD_FILE).read_text()) for at in (place / "out", tmp_path / "again"))
    assert first == second
    words = [word for m in ("audio", "video") for word in (f"--{m}", root / f"moved-base-{m}")]
    awtpn("export", place / "parts", tmp_path / "whole", "--merge", *words)
    assert json.loads((tmp_path / "whole" / CARD_FILE).read_text())["encoders"] == first["encoders"]
    model.save_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(answers(load_model(tmp_path / "saved")), expected, atol=1e-5)


def test_nothing_tells_of_this_machine(made: tuple[Path, np.ndarray, Path], tmp_path: Path) -> None:
    root, _, place = made
    assert tells(root / "run", str(root)), "a run's own card does"
    load_model(place / "out").save_pretrained(tmp_path / "saved")
    for folder in (place / "out", place / "parts", tmp_path / "saved"):
        for private in (root, place, tmp_path):
            assert tells(folder, str(private)) == []


def test_a_push_of_private_details_is_refused(made: tuple[Path, np.ndarray, Path], tmp_path: Path) -> None:
    out = Path(shutil.copytree(made[2] / "parts", tmp_path / "out"))
    card = json.loads((out / CARD_FILE).read_text())
    card["encoders"]["audio"]["config"]["model"] = "/home/me/secret"
    (out / CARD_FILE).write_text(json.dumps(card))
    assert "holds private details of the machine that made it" in refusal("push", out, "someone/emotions")


def test_base_models_of_the_hub_stay_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = on_hub(base_models(tmp_path / "bases"), monkeypatch)
    model = finetuned(ids)
    saved(model, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "parts")
    record = json.loads((tmp_path / "parts" / CARD_FILE).read_text())["encoders"]["audio"]
    assert record["config"]["model"] == record["settings"]["id"] == "someone/audio-base"
    assert len(record["settings"]["revision"]) == 40
    np.testing.assert_allclose(answers(load_model(tmp_path / "parts")), answers(model), atol=1e-6)
    readme = (tmp_path / "parts" / README_FILE).read_text()
    assert "base_model:\n- someone/audio-base\n- someone/video-base\n" in readme
    export(tmp_path / "run", tmp_path / "whole", merge=True)
    assert (
        "base_model: someone/audio-base"
        in (tmp_path / "whole" / "encoders" / "audio" / "README.md").read_text()
    )
    moved = load_model(tmp_path / "parts", {"audio": tmp_path / "bases" / "base-audio"})
    assert moved.card() == load_model(tmp_path / "parts").card(), "it is the same, wherever its files are"


def test_a_baseline_is_exported_whole(tmp_path: Path) -> None:
    model = finetuned(base_models(tmp_path), name="gru")
    saved(model, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", merge=True)
    loaded = load_model(tmp_path / "out")
    assert loaded.config.name == "gru"
    np.testing.assert_allclose(answers(loaded), answers(model), atol=1e-5)


def test_what_cannot_be_is_refused_in_a_line(made: tuple[Path, np.ndarray, Path], tmp_path: Path) -> None:
    _, _, place = made
    told = refusal("export", place / "out", tmp_path / "x", "--graph")
    assert "has encoders of audio and video, and a graph takes features: leave out --graph" in told
    small_model().float().save_pretrained(tmp_path / "features")
    told = refusal("export", tmp_path / "features", tmp_path / "x", "--merge")
    assert "is a model of features, without encoders to merge: leave out --merge" in told
    assert "a folder of another machine" in refusal("export", place / "parts", tmp_path / "x", "--merge")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (APACHE, "apache-2.0"),
        ("---\nlicense: other\nlicense_name: llama3\n---\n", "llama3"),
        ("---\nlicense: [mit, x]\n---\n", None),
        ("---\nlicense: mit", None),
        ("no front matter\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: &a [*a]\n---\n", None),
        ("---\n: : [\n---\n", None),
        ("---\n- mit\n---\n", None),
        ("", None),
    ],
)
def test_licenses_of_readmes(tmp_path: Path, text: str, licence: Any) -> None:
    assert read_licence(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert read_licence(tmp_path) == licence
