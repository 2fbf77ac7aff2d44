"""An export tells how a model was made, and nothing of whose machine it was made on."""

from __future__ import annotations

import json
import platform
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from encoders_support import AUDIO, VIDEO
from markdown_it import MarkdownIt
from safetensors.torch import load_file, save_file
from support import CLASSES, DIMS, REPO, small_model

from awtpn.cli import main
from awtpn.inference.export import copy_weights
from awtpn.metrics.classification import summarize
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.model.files import CARD_FILE, README_FILE, WEIGHTS_FILE, find_model
from awtpn.model.sharing.model_card import render_card
from awtpn.model.sharing.privacy import basename, public_card, public_provenance
from awtpn.model.task import Task
from awtpn.training.trainer import main as train
from shards import Sample, pack
from shards.extraction.encoders import open_audio_encoder, open_text_encoder, open_video_encoder
from shards.extraction.reopen_encoder import reopen_encoder
from shards.format.feature_space import extraction_provenance, space_of

MARK = "place-of-the-owner"
SHORT = ["--model.shared_dim", "8", "--train.global_batch_size", "8", "--train.max_steps", "2"]


def packed(folder: Path, provenance: dict[str, Any]) -> str:
    """A small dataset, made on a machine whose every path is marked."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            f"{split}-{i}",
            split,
            CLASSES[i % 3],
            {name: rng.normal(0, 1, (3, dim)).astype(np.float32) for name, dim in DIMS.items()},
        )
        for split in ("train", "test")
        for i in range(9)
    ]
    pack(samples, str(folder), classes=CLASSES, provenance=provenance, progress=False)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run on features of encoders in local folders."""
    folder = tmp_path_factory.mktemp(MARK)
    audio = open_audio_encoder(str(AUDIO["wav2vec2"](folder / "w2v")))
    video = open_video_encoder(str(VIDEO["vit"](folder / "vit")))
    made = extraction_provenance({"audio": audio, "video": video})
    host = platform.node()
    provenance = {
        "corpus": "recordings",
        "source": str(folder),
        "pattern": f"{folder}/(?P<label>x)",
        "label_map": {"HAP": "happy", f"{folder}/sad": "sad"},
        "command": f"awtpn extract {folder}",
        "encoder": f"{folder}/w2v of {host}:{folder}/models/w2v",
        "warning": f"{folder}: audio[3] is coarse",
        "host": host,
        "owner": MARK,
        **made,
    }
    data = packed(folder / "corpus", provenance)
    train(["--data.train", data, "--run.dir", str(folder / "run"), *SHORT])
    return folder / "run"


def test_every_byte_of_an_export_is_fit_to_be_seen(run: Path, tmp_path: Path) -> None:
    best = find_model(run)
    out = tmp_path / "model"
    main(["export", str(run), str(out), "--graph"])
    names = {path.name for path in out.iterdir()}
    assert names >= {WEIGHTS_FILE, CARD_FILE, README_FILE, "model.pt2"}
    telling = {MARK, str(Path.home()), sys.prefix, str(REPO), str(tmp_path), str(run.parent)}
    telling |= {host for host in (platform.node(), socket.gethostname()) if len(host) > 5}
    # The zip that torch.export writes is not compressed.
    content = {path.name: path.read_bytes() for path in out.iterdir()}
    assert [(name, word) for name in content for word in telling if word.encode() in content[name]] == []

    card = json.loads((out / CARD_FILE).read_text())
    told = card["provenance"]
    assert told.keys() == {"corpus", "label_map", "encoder", "features", "extracted", "packed", "versions"}
    assert told["label_map"] == {"HAP": "happy", "sad": "sad"}
    assert "numpy" in told["versions"]
    full = json.loads((best / CARD_FILE).read_text())["provenance"]["features"]
    for name, folder in (("audio", "w2v"), ("video", "vit")):
        settings, before = told["features"][name]["settings"], full[name]["settings"]
        assert settings == {key: value for key, value in before.items() if key != "path"}
        assert settings["id"] == folder
        assert space_of(settings) == told["features"][name]["space"] == space_of(before)
        with pytest.raises(ValueError, match=rf"{name}: .* '{folder}' of another machine: .*--{name} FOLDER"):
            reopen_encoder(name, settings)
    assert (
        reopen_encoder("audio", told["features"]["audio"]["settings"], spec=str(run.parent / "w2v")).dim == 32
    )
    assert card["results"]["test"]["labels"] == CLASSES
    assert "HAP" in (out / README_FILE).read_text()
    main(["export", str(out), str(tmp_path / "again")])
    assert "graph" not in json.loads((tmp_path / "again" / CARD_FILE).read_text())


def test_weights_are_exported_without_notes(tmp_path: Path) -> None:
    source, out = tmp_path / "noted.safetensors", tmp_path / "out.safetensors"
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, source, metadata={"made": f"/home/{MARK}"})
    copy_weights(source, out)
    assert MARK.encode() not in out.read_bytes()
    assert torch.equal(load_file(out)["a"], tensors["a"])
    save_file(tensors, source)
    copy_weights(source, out)
    assert out.read_bytes() == source.read_bytes()


def test_a_model_saved_from_python_tells_no_more(tmp_path: Path) -> None:
    model = small_model()
    model.provenance = {"command": f"awtpn pack {MARK}", "encoder": "e"}
    model.record = {"dataset": f"/data/{MARK}/meld", "notes": MARK, "results": {"where": MARK}}
    model.save_pretrained(tmp_path / "m")
    assert all(MARK.encode() not in path.read_bytes() for path in (tmp_path / "m").iterdir())
    assert model.card()["provenance"]["command"], "its own card, which checkpoints keep, is whole"


def test_an_export_of_before_is_not_pushed(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "my model")
    file = tmp_path / "my model" / CARD_FILE
    card = json.loads(file.read_text()) | {"provenance": {"source": f"/home/{MARK}"}}
    file.write_text(json.dumps(card))
    with pytest.raises(
        SystemExit, match=r"private details of the machine .*awtpn export '.*my model' NEW_DIR"
    ):
        main(["push", str(tmp_path / "my model"), "someone/emotions"])


@pytest.mark.parametrize("built_in", ["logmel", "descriptor", "descriptor with faces", "chargrams"])
def test_settings_of_built_in_encoders_stay_whole(built_in: str) -> None:
    if built_in == "logmel":
        encoder: Any = open_audio_encoder("logmel")
    elif built_in == "chargrams":
        encoder = open_text_encoder("chargrams")
    else:
        encoder = open_video_encoder("descriptor", faces="opencv" if "faces" in built_in else "none")
    provenance = extraction_provenance({"audio": encoder})
    assert public_provenance(provenance) == json.loads(json.dumps(provenance))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/wav2vec 2", "wav2vec 2"),
        ("~/w2v", "w2v"),
        ("../models/w2v/", "w2v"),
        ("C:\\Users\\me\\w2v", "w2v"),
        ("me@host:/data/w2v", "w2v"),
        ("\\\\host\\share\\w2v", "w2v"),
        ("s3://me:secret@bucket/w2v?token=x", "w2v"),
        ("models/of/me", "me"),
        ("facebook/hubert-base", "facebook/hubert-base"),
        ("tuned from /home/me/w2v, layer 9", "tuned from w2v, layer 9"),
        ("1/2 of the picture, 3/4 of the sound", "1/2 of the picture, 3/4 of the sound"),
        ("2026-01-02T03:04:05+00:00", "2026-01-02T03:04:05+00:00"),
    ],
)
def test_places_are_their_last_names(text: str, shown: str) -> None:
    assert basename(text) == shown


def test_names_cannot_write_into_a_model_card() -> None:
    hostile = ["a|b", "<script>alert(1)</script>", "x\n---\nlicense: mit\n\n# forged\n[c](javascript:d)\x1b"]
    figures = summarize(np.eye(3, dtype=np.int64), hostile)
    told = {"dataset": hostile[2], "results": {"test": figures}, "classes": hostile}
    card = small_model().card() | told | {"provenance": {"encoder": f"```\n{hostile[1]}"}}
    text = render_card(card, hostile[2])
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "awtpn"
    assert "license" not in yaml.safe_load(front)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    flat = [each for token in tokens for each in (token, *(token.children or ()))]
    assert {token.type for token in flat} & {"html_inline", "html_block", "link_open"} == set()
    assert len([token for token in tokens if token.type == "heading_open"]) == 7
    assert len([token for token in flat if token.type == "th_open"]) == 3 + 5
    assert "\x1b" not in text
    assert public_card(card)["classes"] == hostile


def test_a_task_and_its_results_tell_no_more() -> None:
    task = Task("regression", ["valence"], [[-3, 3]], levels=5)
    figures = summarize_values(np.array([[1.0], [2.0]]), np.array([[1.5], [1.5]]), task.names, task.ranges)
    labels = summarize_labels(np.array([[1.0], [0.0]]), np.array([[0.9], [0.6]]), ["loud"])
    noted = {"where": f"/home/{MARK}", "names": [MARK], "utterances": 2}
    results = {
        "checkpoint": {"step": 3, "sha256": "0" * 64, "path": MARK},
        "test": figures
        | {"file": MARK, "per_dimension": {"valence": figures["per_dimension"]["valence"] | noted}},
        "val": labels | {"note": [MARK]},
        "other": {"task": f"/home/{MARK}", "utterances": 3},
    }
    card = small_model(task=task).card() | {"results": results}
    card["task"] |= {"source": f"/home/{MARK}"}
    shown = public_card(card)
    assert shown["task"] == task.record()
    assert MARK not in json.dumps(shown)
    told = shown["results"]
    assert told["checkpoint"] == {"step": 3, "sha256": "0" * 64}
    assert told["test"] == figures | {
        "per_dimension": {"valence": figures["per_dimension"]["valence"] | {"utterances": 2}}
    }
    assert told["val"] == labels
    assert told["other"] == {"utterances": 3}
    assert next(iter(told["test"])) == "task", "as results.json has it"
    assert public_card(shown) == shown
