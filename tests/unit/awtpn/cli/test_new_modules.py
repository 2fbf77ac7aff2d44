"""A source or an encoder that is one new file works on the command line, with its help and its options."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora_support import write_sound, write_tree

import shards.extraction.encoders
import shards.sources
from awtpn.cli import main
from awtpn.cli.parser import make_parser
from shards import FeatureStream
from shards.extraction.encoders import open_audio_encoder
from shards.extraction.reopen_encoder import reopen_encoder
from shards.storage.store import open_dataset

Adder = Callable[[Any, str, str], None]


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Adder]:
    """Puts a module beside those of a package."""
    before = set(sys.modules)

    def add(package: Any, name: str, code: str) -> None:
        folder = tmp_path / package.__name__
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])

    yield add
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]
            package, _, module = name.rpartition(".")
            delattr(sys.modules[package], module)


def awtpn(*words: object) -> None:
    main([str(word) for word in words])


def help_of(command: str) -> str:
    """The help of a command, each run of white space as one space."""
    [commands] = [a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return " ".join(commands.choices[command].format_help().split())


# --- A source of features ------------------------------------------------------------------------


SPREADSHEET = '''"""Columns of numbers in a text file, `name,label,value`.

More about it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from shards.format.schema import Sample
from shards.sources.base import Source


def read(
    source: str | Path,
    labels: list[str] | None = None,
    scale: float = 2.0,
    repeat: int = 1,
    unit: Literal["s", "ms"] = "s",
    renamed: dict[str, str] | None = None,
    reverse: bool = False,
    notes: str | Path | None = None,
) -> Source:
    """Read it.

    Args:
        source: the text file.
        labels: class names.
        scale: factor of
            all values, 100 % is 1.
        repeat: steps of an utterance.
        unit: of time.
        renamed: new names of labels.
        reverse: last row first.
        notes: a file of notes.
    """
    rows = [line.split(",") for line in Path(source).read_text().split()]
    samples = []
    for key, label, value in reversed(rows) if reverse else rows:
        features = {"audio": np.full((repeat, 2), scale * float(value), np.float32)}
        meta = {"unit": unit, "notes": str(notes)}
        samples.append(Sample(key, "train", (renamed or {}).get(label, label), features, meta))
    return Source(iter(samples), labels or ["a", "b"], {"format": "spreadsheet"}, len(samples))
'''


def test_a_source_of_features_is_one_file(add: Adder, tmp_path: Path) -> None:
    add(shards.sources, "spreadsheet", SPREADSHEET)
    shown = help_of("pack")
    assert "spreadsheet Columns of numbers in a text file, name,label,value. SOURCE: the text file." in shown
    assert "--scale N spreadsheet: factor of all values, 100 % is 1 (default: 2)" in shown
    assert "--unit {s,ms} spreadsheet: of time (default: s)" in shown
    assert "--renamed A=NAME,... spreadsheet: new names of labels" in shown
    assert "--reverse spreadsheet: last row first" in shown
    assert "--notes FILE spreadsheet: a file of notes" in shown

    text = tmp_path / "x.txt"
    text.write_text("u,a,1\nv,b,2\n")
    words = ["--scale", 3, "--repeat", 4, "--unit", "ms", "--renamed", "b=c", "--labels", "a,c", "--reverse"]
    awtpn("pack", text, tmp_path / "out", "--format", "spreadsheet", *words)
    stream = FeatureStream(str(tmp_path / "out"), shuffle=False)
    batch = next(stream.epoch(0))
    assert (batch.key, stream.classes) == (["v", "u"], ["a", "c"])
    np.testing.assert_array_equal(batch.features["audio"].values, [[6, 6]] * 4 + [[3, 3]] * 4)

    awtpn("pack", text, tmp_path / "defaults", "--format", "spreadsheet")
    values = next(FeatureStream(str(tmp_path / "defaults"), shuffle=False).epoch(0)).features["audio"].values
    np.testing.assert_array_equal(values, [[2, 2], [4, 4]])


def test_options_that_a_new_source_lacks_are_refused(
    add: Adder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(shards.sources, "spreadsheet", SPREADSHEET)
    lacks = r"--folds is an option of --format mosei, .* read as spreadsheet, which takes --labels, --scale"
    with pytest.raises(SystemExit, match=lacks):
        awtpn("pack", "x.txt", tmp_path / "out", "--format", "spreadsheet", "--folds", "f")
    with pytest.raises(SystemExit, match=r"--scale is an option of --format spreadsheet, .* read as npz"):
        awtpn("pack", "x.npz", tmp_path / "out", "--format", "npz", "--scale", 1)
    for wrong in (("--unit", "h"), ("--scale", "nan"), ("--repeat", "x"), ("--renamed", "x")):
        with pytest.raises(SystemExit):
            awtpn("pack", "x.txt", tmp_path / "out", "--format", "spreadsheet", *wrong)
        assert f"error: {wrong[0]}" in capsys.readouterr().err


def test_help_imports_no_source(add: Adder) -> None:
    add(shards.sources, "broken", SPREADSHEET.replace("import numpy", "import no_such_library"))
    assert "broken Columns of numbers" in help_of("pack")
    with pytest.raises(SystemExit, match="no_such_library"):
        awtpn("pack", "x.txt", "out", "--format", "broken")


# --- A source of recordings ----------------------------------------------------------------------


TAKES = '''"""Takes: a folder of `takes` of sound."""

from pathlib import Path

from shards.sources.base import Clip, ClipSource


def recognize(folder: Path) -> bool:
    return (folder / "takes").is_dir()


def read(source: str | Path, label_set: int = 1, loudest: bool = False) -> ClipSource:
    """Read it.

    Args:
        source: the folder.
        label_set: number of labels.
        loudest: take only the first.
    """
    paths = sorted((Path(source) / "takes").glob("*"))[: 1 if loudest else None]
    clips = [Clip(p.stem, "all", f"label_{i % label_set}", p, None) for i, p in enumerate(paths)]
    return ClipSource(clips, [f"label_{i}" for i in range(label_set)], {"corpus": "takes"})
'''


def test_a_source_of_recordings_is_one_file(add: Adder, tmp_path: Path) -> None:
    add(shards.sources, "takes", TAKES)
    assert "takes Takes: a folder of takes of sound. SOURCE: the folder." in help_of("extract")
    assert "--loudest takes: take only the first" in help_of("extract")
    told = help_of("extract")
    assert "iemocap: number of classes, 4 or 6 (default: 4" in told
    assert "takes: number of labels" in told
    assert "takes Takes: a folder of takes of sound." in help_of("pack")

    corpus = tmp_path / "corpus"
    (corpus / "takes").mkdir(parents=True)
    for name in "uvw":
        write_sound(corpus / "takes" / f"{name}.wav", 0.5)
    options = ["--label_set", 2, "--loudest", "--video", "none"]
    awtpn("extract", corpus, tmp_path / "guessed", *options)
    _, manifest, _ = open_dataset(str(tmp_path / "guessed"))
    assert manifest.classes == ["label_0", "label_1"]
    assert manifest.splits["all"].utterances == 1
    assert manifest.provenance["corpus"] == "takes"
    awtpn("pack", corpus, tmp_path / "packed", "--format", "takes", "--label_set", 3)
    assert open_dataset(str(tmp_path / "packed"))[1].classes == ["label_0", "label_1", "label_2"]

    with pytest.raises(SystemExit, match=r"--pattern is an option of --format recordings, .* read as takes"):
        awtpn("extract", corpus, tmp_path / "no", "--pattern", "x")
    with pytest.raises(SystemExit, match="--label_set 5: must be 4 or 6"):
        awtpn("extract", corpus, tmp_path / "no", "--format", "iemocap", "--label_set", 5)


# --- Encoders ------------------------------------------------------------------------------------


LOUDNESS = '''"""The loudness of each second."""

import numpy as np


class Loudness:
    """Audio encoder.

    Args:
        columns: of the features.
        window_seconds: seconds of a window.
        ignored: a type without an option.
    """

    modality = "audio"
    name = "loudness"
    rate = 8000
    step_seconds = 1.0

    def __init__(
        self, *, columns: int = 1, window_seconds: float = 0.5, ignored: tuple[int, ...] = ()
    ) -> None:
        self.dim = columns
        self.settings = {"id": "loudness", "rate": 8000, "columns": columns, "window_seconds": window_seconds}

    def encode(self, waves):
        steps = [len(wave) // 8000 or 1 for wave in waves]
        return [np.full((n, self.dim), abs(w).mean(), np.float32) for n, w in zip(steps, waves)]
'''


def test_an_encoder_is_one_file(add: Adder, tmp_path: Path) -> None:
    add(shards.extraction.encoders, "loudness", LOUDNESS)
    shown = help_of("extract")
    assert "loudness audio: The loudness of each second." in shown
    assert "--audio_columns N loudness: of the features (default: 1)" in shown
    assert "--audio_window N loudness: seconds of a window (default: 0.5)" in shown

    assert "--audio_ignored" not in shown

    tree = write_tree(tmp_path / "t")
    options = ["--audio", "loudness", "--audio_columns", 3, "--video", "none"]
    awtpn("extract", tree, tmp_path / "d", *options)
    _, manifest, _ = open_dataset(str(tmp_path / "d"))
    assert manifest.modalities["audio"].dim == 3
    settings = manifest.provenance["features"]["audio"]["settings"]
    assert reopen_encoder("audio", settings).dim == 3, "recordings can be encoded for a model trained on them"

    with pytest.raises(SystemExit, match="layer=2: the encoder 'loudness' has no such option"):
        awtpn("extract", tree, tmp_path / "no", *options, "--audio_layer", 2)
    with pytest.raises(SystemExit, match="columns=2: the encoder 'logmel' has no such option"):
        awtpn("extract", tree, tmp_path / "no", "--audio_columns", 2)


TOY = '''"""Toy models: a model type that exists here alone."""

from typing import Literal


class Toy:
    """Audio encoder.

    Args:
        model: the model.
        layer: which layer.
        mode: of computing.
    """

    modality = "audio"
    architectures = {"toy": "ToyModel"}

    def __init__(self, model, *, layer: int = 0, mode: Literal["fast", "exact"] = "fast", device="cpu"):
        self.name, self.made_of = model.spec, (model.model_type, layer, mode, device, *model.origin)
'''


def test_a_class_for_models_is_found_by_their_type(add: Adder, tmp_path: Path) -> None:
    add(shards.extraction.encoders, "hf_toy", TOY)
    assert "MODEL (hf_toy) audio: Toy models: a model type that exists here alone." in help_of("extract")
    assert "--audio_mode {fast,exact} MODEL (hf_toy): of computing (default: fast)" in help_of("extract")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    opened: Any = open_audio_encoder(str(folder), device="cuda:1", dtype="bfloat16", layer=3)
    assert opened.name == str(folder)
    assert opened.made_of == ("toy", 3, "fast", "cuda:1", "id", "path", "sha256")
    with pytest.raises(ValueError, match=r"mode 'slow' is not known; use 'fast' or 'exact'"):
        open_audio_encoder(str(folder), mode="slow")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"'bert' is not one .*: use hubert, toy, wav2vec2"):
        open_audio_encoder(str(folder))
