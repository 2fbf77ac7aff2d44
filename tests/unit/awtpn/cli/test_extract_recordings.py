"""`awtpn extract` of recordings in place of features: what it stores, and what it says they are for."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from cli_support import awtpn, refusal
from media_support import numbered, record
from recordings_support import SIDE, sound_of

from awtpn.cli.dataset_summary import how_to_use
from awtpn.config.command_line import parse_command_line
from awtpn.model.sharing.privacy import public_provenance
from shards import FeatureStream
from shards.format.recording import Recording
from shards.format.schema import Manifest, Modality, Split
from shards.storage.store import open_dataset
from shards.tools.info import format_info, info

SMALL = ["--video_side", SIDE, "--fps", 10]
READ = "read the recordings ({}) with shards.FeatureStream or webdataset; see what they are with: "


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips in folders: one with what is said beside it, one of silence."""
    tree = tmp_path_factory.mktemp("tree")
    for i, split in enumerate(("train", "train", "test", "test")):
        folder = tree / split / ("calm", "loud")[i % 2]
        folder.mkdir(parents=True)
        sound = np.zeros(8000, np.float32) if i == 3 else sound_of(i)
        record(folder / "a.mkv", [numbered(20 * i + j) for j in range(5)], sound=sound)
    (tree / "train" / "calm" / "a.txt").write_text("what a day")
    return tree


def test_the_command_of_the_help_stores_recordings(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "d"
    words = ["--audio", "waveform", "--video", "frames", "--video_jpeg", 90, "--text", "chargrams"]
    awtpn("extract", tree, out, *words, "--text_width", 16, *SMALL, "--store_text", "--dtype", "float32")
    told = capsys.readouterr().out
    assert "1 clips have no audio, which never changes; --keep_constant keeps it" in told
    assert f"extracted; train with: awtpn train --data.train {out} --model.modalities text\n" in told
    encoders = "--audio logmel --video descriptor"
    assert f"\nmake features of the recordings with: awtpn extract {out} OUT {encoders}\n" in told
    assert told.endswith(f"\n{READ.format('audio, video')}awtpn shards info {out}\n")

    _, manifest, _ = open_dataset(str(out))
    assert manifest.modalities == {
        "audio": Modality(1600, "int16", Recording("waveform", 16000.0, [1600])),
        "video": Modality(3 * SIDE**2, "uint8", Recording("frames", 10.0, [SIDE, SIDE, 3], 90)),
        "text": Modality(16, "float32"),
    }
    batch = next(iter(FeatureStream(str(out), global_batch_size=2, shuffle=False).epoch(0)))
    assert batch.key == ["train_calm_a", "train_loud_a"]
    assert batch.samples["audio"].tolist() == [8000, 19680]
    assert batch.features["video"].values.shape == (10, SIDE, SIDE, 3)
    assert batch.features["text"].host_offsets.tolist() == [0, 3, 3]
    made = format_info(info(str(out))).partition("\nmade:\n")[2]
    assert "\n    waveform (rate 16000, step_seconds 0.1)\n" in made
    assert "\n    frames (fps 10, side 32, largest_side 64, faces none, jpeg 90)\n" in made


def test_webdataset_reads_what_the_page_says(tree: Path, tmp_path: Path) -> None:
    """As the snippet of launch/README.md does."""
    words = ["--audio", "waveform", "--video", "frames", "--video_jpeg", 95]
    awtpn("extract", tree, tmp_path / "d", *words, *SMALL)
    shard = str(tmp_path / "d" / "train-000000.tar")
    clips = {
        clip["__key__"]: clip for clip in webdataset.WebDataset(shard, shardshuffle=False).decode("rgb8")
    }
    clip = clips["train_loud_a"]
    sound = clip["audio.npy"].reshape(-1)[: clip["json"]["num_samples"]["audio"]]
    assert sound.dtype == np.int16
    assert (sound == sound_of(1) * 32768).all()
    pictures = [value for name, value in clip.items() if name.endswith(".jpg")]
    assert [(each.shape, each.dtype) for each in pictures] == [((SIDE, SIDE, 3), np.uint8)] * 5
    stream = FeatureStream(str(tmp_path / "d"), global_batch_size=1, shuffle=False)
    of_stream = list(stream.epoch(0))[1].features["video"].values
    assert np.abs(np.stack(pictures).astype(int) - of_stream.numpy()).max() <= 4  # two decoders of JPEG


def test_features_of_a_dataset_of_recordings(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its format is guessed, of a folder, of a split of it and of a URL."""
    packed, made = tmp_path / "packed", tmp_path / "features"
    awtpn("extract", tree, packed, "--audio", "waveform", "--video", "frames", "--video_jpeg", 90, *SMALL)
    awtpn(
        "extract",
        packed,
        made,
        "--audio",
        "logmel",
        "--video",
        "descriptor",
        "--fps",
        5,
        "--dtype",
        "float32",
    )
    assert f"extracted; train with: awtpn train --data.train {made}\n" in capsys.readouterr().out
    _, manifest, _ = open_dataset(str(made))
    assert {name: split.steps for name, split in manifest.splits.items()} == {
        "test": {"audio": 8, "video": 4},
        "train": {"audio": 17, "video": 4},
    }
    assert manifest.provenance["command"].endswith("--fps 5 --dtype float32")
    assert manifest.provenance["corpus"] == "recordings"
    assert "recorded {id frames, version 1, fps 10, side 32" in " ".join(format_info(info(str(made))).split())
    settings = public_provenance(manifest.provenance)["features"]["video"]["settings"]
    assert (settings["recorded"]["jpeg"], settings["recorded"]["faces"]) == (90, "none"), "an export has it"
    awtpn("extract", f"{packed}#train", tmp_path / "train", "--video", "none", "--limit", 1)
    _, manifest, _ = open_dataset(str(tmp_path / "train"))
    assert {name: split.steps for name, split in manifest.splits.items()} == {"train": {"audio": 5}}

    fs, name = fsspec.filesystem("memory"), uuid.uuid4().hex
    for path in packed.iterdir():
        fs.pipe_file(f"/{name}/d/{path.name}", path.read_bytes())
    try:
        words = ["--fps", 5, "--dtype", "float32", "--cache_dir", tmp_path / "cache", "--cache_limit", "1GB"]
        awtpn("extract", f"memory://{name}/d", tmp_path / "remote", *words)
    finally:
        fs.rm(f"/{name}", recursive=True)
    for path in made.glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "remote" / path.name).read_bytes()

    told = refusal("extract", made, tmp_path / "e")
    assert f"{made}: holds features, not recordings, so no other features can be made of it" in told
    assert "not 4 per second: give --fps 10" in refusal("extract", packed, tmp_path / "e", "--fps", 4)
    told = refusal("extract", tree, tmp_path / "e", "--cache_limit", "1GB")
    assert "--cache_limit is an option of --format packed_recordings, but this is read as recordings" in told
    assert "no such file or folder" in refusal("extract", f"{tmp_path}/gone#train", tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_words_are_stored_beside_recordings(tree: Path, tmp_path: Path) -> None:
    for stored in (False, True):
        out = tmp_path / str(stored)
        words = ["--audio", "waveform", "--video", "none", "--text", "chargrams"]
        awtpn("extract", tree, out, *words, *["--store_text"] * stored)
        stream = FeatureStream(str(out), shuffle=False, modalities=["audio"])
        meta = dict(stream.metadata())["train_calm_a"]
        assert meta["num_samples"] == {"audio": 8000}
        assert ("what" in json.dumps(meta)) == stored


def test_recordings_alone_have_no_command_that_trains(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    awtpn("extract", tree, tmp_path / "d", "--audio", "waveform", "--video", "frames", *SMALL)
    told = capsys.readouterr().out
    features = f"awtpn extract {tmp_path / 'd'} OUT --audio logmel --video descriptor"
    assert f"\nextracted; make features of the recordings with: {features}\n" in told
    assert told.endswith(f"\n{READ.format('audio, video')}awtpn shards info {tmp_path / 'd'}\n")
    assert "awtpn train" not in told


def test_of_features_and_recordings_the_features_train() -> None:
    pictures = Modality(12, "uint8", Recording("frames", 10.0, [2, 2, 3]))
    modalities = {"audio": Modality(3, "float16"), "text": Modality(3, "float16"), "video": pictures}
    splits = dict.fromkeys(["train", "test"], Split(1, {}, [1], {}, []))
    told = how_to_use(Manifest(modalities, ["a"], {}, splits, {}), "my clips").split("\n")
    command = "awtpn train --data.train 'my clips' --model.modalities audio,text"
    assert told == [
        f"train with: {command}",
        "make features of the recordings with: awtpn extract 'my clips' OUT --video descriptor --audio none",
        f"{READ.format('video')}awtpn shards info 'my clips'",
    ]
    config, _ = parse_command_line(["--data.train", "my clips", "--model.modalities", "audio,text"])
    assert list(config.model.modalities) == ["audio", "text"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--video_jpeg", 90], "jpeg=90: the encoder 'descriptor' has no such option; leave it out"),
        (["--video_side", 64], "side=64: the encoder 'descriptor' has no such option; leave it out"),
        (["--audio_rate", 8000], "rate=8000: the encoder 'logmel' has no such option; leave it out"),
        (["--video", "frames", "--video_jpeg", 96], "jpeg_quality is 96; it is 1 to 95, of pictures only"),
        (["--video", "frames", "--video_side", 0], "frames: side=0: must be from 1 to 4096"),
        (["--video", "frames", "--video_side", 5000], "frames: side=5000: must be from 1 to 4096"),
        (["--audio", "waveform", "--audio_rate", 0], "is 0 samples; a step has a whole number of samples"),
        (
            ["--audio", "waveform", "--audio_rate", 16001],
            "step_seconds=0.1 at rate=16001 is 1600.1 samples; a step has a whole number of samples",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(
    words: list[object], told: str, tree: Path, tmp_path: Path
) -> None:
    assert told in refusal("extract", tree, tmp_path / "d", *words)
    assert not (tmp_path / "d").exists()
