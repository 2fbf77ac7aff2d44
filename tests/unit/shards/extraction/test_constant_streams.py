"""Streams in which nothing ever happens: sound of zeros, pictures that are all the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from media_support import chirp, numbered, record

from awtpn.cli import main
from awtpn.inference.predictor import Predictor
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.extraction.extract import extract
from shards.extraction.media import ConstantStream, read_audio, read_frames
from shards.extraction.shard_jobs import extraction_id
from shards.format.feature_space import recorded_constant
from shards.format.schema import Manifest
from shards.sources.base import Clip, ClipSource
from shards.tools.info import format_info, info

RATE = 16000
SILENCE = np.zeros(RATE, np.float32)
MOVING = [numbered(i) for i in range(10)]
STILL = [numbered(77)] * 10
NOT_KEPT: dict[str, Any] = {"keep_constant": False}


# --- What never changes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "codec", "rate"),
    [
        ("wav", "pcm_s16le", 16000),
        ("avi", "pcm_u8", 16000),
        ("avi", "pcm_mulaw", 8000),
        ("mp4", "aac", 44100),
        ("mkv", "libopus", 48000),
        ("mp4", "mp3", 44100),
        ("mkv", "ac3", 48000),
    ],
)
def test_digital_silence_is_known_through_any_codec(
    tmp_path: Path, ending: str, codec: str, rate: int
) -> None:
    """But not what is faint."""
    path = record(tmp_path / f"a.{ending}", sound=np.zeros(rate, np.float32), rate=rate, sound_codec=codec)
    with pytest.raises(ConstantStream, match=rf"a.{ending}: its sound never changes: digital silence"):
        read_audio(path, RATE, **NOT_KEPT)
    kept = read_audio(path, RATE)
    assert kept is not None
    assert len(kept) == pytest.approx(RATE, abs=2400)
    if codec == "pcm_u8":
        return  # which has no faint sound
    faint = np.where(np.arange(rate) // 50 % 2, 16, -16).astype(np.float32) / 32768
    path = record(tmp_path / f"b.{ending}", sound=faint, rate=rate, sound_codec=codec)
    assert read_audio(path, RATE, **NOT_KEPT) is not None


def test_a_constant_level_is_silence_and_one_step_of_sixteen_bits_is_none(tmp_path: Path) -> None:
    level = np.full(RATE, 0.25, np.float32)
    path = record(tmp_path / "level.wav", sound=level)
    with pytest.raises(ConstantStream, match="its sound never changes"):
        read_audio(path, 8000, **NOT_KEPT)
    level[RATE // 2] += 1 / 32768
    assert read_audio(record(tmp_path / "step.wav", sound=level), 8000, **NOT_KEPT) is not None


def test_of_a_span_the_span_counts(tmp_path: Path) -> None:
    """A second of silence in the midst of a recording, and a picture that stands still for a while."""
    sound = np.concatenate([chirp(1), SILENCE, chirp(1)])
    path = record(tmp_path / "a.avi", [*MOVING, *STILL, *MOVING], codec="ffv1", sound=sound)
    for span in [None, (0.0, 1.0), (0.5, 1.5), (1.5, 2.5)]:
        assert read_audio(path, RATE, span, **NOT_KEPT) is not None
        assert read_frames(path, 10, span, **NOT_KEPT) is not None
    with pytest.raises(ConstantStream, match=r"its sound from 1.1 s to 1.9 s never changes"):
        read_audio(path, RATE, (1.1, 1.9), **NOT_KEPT)
    with pytest.raises(ConstantStream, match=r"its picture from 1.1 s to 1.9 s never changes: 8 alike"):
        read_frames(path, 10, (1.1, 1.9), **NOT_KEPT)


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "libx264"), ("avi", "mpeg4"), ("mkv", "ffv1")])
def test_a_picture_that_stands_still_is_known(tmp_path: Path, ending: str, codec: str) -> None:
    path = record(tmp_path / f"a.{ending}", STILL, codec=codec)
    with pytest.raises(ConstantStream, match=rf"a.{ending}: its picture never changes: 10 alike"):
        read_frames(path, 10, **NOT_KEPT)
    kept = read_frames(path, 10)
    assert kept is not None
    assert len(kept[0]) == 10
    once = [*STILL[:9], numbered(76)]
    assert read_frames(record(tmp_path / f"b.{ending}", once, codec=codec), 10, **NOT_KEPT) is not None


def test_a_single_picture_is_an_image(tmp_path: Path) -> None:
    """However long it is shown."""
    path = record(tmp_path / "a.mkv", [STILL[0]], codec="ffv1", sound=chirp(1))
    found = read_frames(path, 10, **NOT_KEPT)
    assert found is not None
    path = record(tmp_path / "b.mkv", [numbered(1), numbered(2)], times=[0, 3], codec="ffv1")
    found = read_frames(path, 10, (0.5, 2.5), **NOT_KEPT)
    assert found is not None
    assert len(found[0]) == 20


# --- Extraction ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name, pictures, sound in [
        ("both", MOVING, chirp(1)),
        ("mute", MOVING, SILENCE),
        ("mute2", MOVING, SILENCE),
        ("cover", STILL, chirp(1)),
        ("nothing", STILL, SILENCE),
        ("image", STILL[:1], chirp(1)),
    ]:
        record(folder / f"{name}.mkv", pictures, codec="ffv1", sound=sound)
    return folder


def source(films: Path, names: Sequence[str]) -> ClipSource:
    paths = {name: films / f"{name}.mkv" for name in names}
    clips = [Clip(name, "all", "calm", path, path) for name, path in paths.items()]
    return ClipSource(list(clips), ["calm"], {"corpus": "films"})


def encoders() -> dict[str, Any]:
    return {"audio": open_audio_encoder("logmel"), "video": open_video_encoder("descriptor", fps=5)}


def made(films: Path, out: Path, names: Sequence[str], **options: Any) -> tuple[Manifest, dict[str, Any]]:
    """The manifest, and by key what a clip's members are."""
    settings = {"dtype": "float32", "clips_per_shard": 2, "progress": False} | options
    manifest = extract(source(films, names), str(out), **settings, **encoders())
    assert manifest is not None
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    return manifest, {each["__key__"]: each for each in webdataset.WebDataset(urls, shardshuffle=False)}


ALL = ["both", "mute", "mute2", "cover", "nothing", "image"]


def test_a_stream_that_never_changes_is_missing_and_told(
    films: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, found = made(films, tmp_path / "d", ALL)
    there = {key: {m for m in ("audio", "video") if f"{m}.npy" in each} for key, each in found.items()}
    assert there == {
        "both": {"audio", "video"},
        "mute": {"video"},
        "mute2": {"video"},
        "cover": {"audio"},
        "image": {"audio", "video"},
    }
    told = {key: json.loads(each["json"]).get("constant_streams") for key, each in found.items()}
    assert told == {"both": None, "mute": ["audio"], "mute2": ["audio"], "cover": ["video"], "image": None}
    [skipped] = map(json.loads, (tmp_path / "d" / "skipped.jsonl").read_text().splitlines())
    path, kept = films / "nothing.mkv", "it counts as missing, unless constant streams are kept"
    assert skipped == {
        "key": "nothing",
        "cause": f"{path}: its sound never changes: digital silence; {kept}; "
        f"{path}: its picture never changes: 5 alike; {kept}",
    }
    assert manifest.provenance["constant_streams"] == {"taken_as": "missing", "audio": 2, "video": 1}
    assert recorded_constant(manifest.provenance) == (False, {"audio": 2, "video": 1})
    assert "constant_streams: taken_as missing, audio 2, video 1" in format_info(info(str(tmp_path / "d")))
    assert "2 clips are without their audio, which never changes; keep_constant keeps it" in caplog.text
    assert "1 clips are without their video, which never changes" in caplog.text
    assert "cannot be decoded" not in caplog.text


def test_it_is_kept_if_one_says_so(films: Path, tmp_path: Path) -> None:
    manifest, found = made(films, tmp_path / "d", ALL, keep_constant=True)
    assert found.keys() == {*ALL}
    assert all({"audio.npy", "video.npy"} <= each.keys() for each in found.values())
    assert recorded_constant(manifest.provenance) == (True, {})
    assert manifest.skipped == 0


def test_extractions_that_differ_in_it_are_not_mixed(films: Path, tmp_path: Path) -> None:
    """What was begun before one could choose goes on with such streams kept, as it was begun."""
    names = ["both", "mute"]
    before = {"clips_per_shard": 2, "dtype": "float32", "on_bad": "skip"}
    manifest, _ = made(films, tmp_path / "kept", names, keep_constant=True)
    assert manifest.provenance["extraction"] == extraction_id(source(films, names), encoders(), before)
    with pytest.raises(ValueError, match="holds a finished dataset"):
        made(films, tmp_path / "kept", names)
    # A dataset of then says nothing of it, and was made so.
    assert recorded_constant({}) == recorded_constant({"constant_streams": "?"}) == (True, {})


def test_a_corpus_without_sound_has_no_modality_of_it(
    films: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("key,split,label,path\n" + "".join(f"{n},all,calm,{films / n}.mkv\n" for n in ALL[1:3]))
    main(["extract", str(table), str(tmp_path / "d"), "--dtype", "float32"])
    assert "2 clips have no features of audio, which never changes; --keep" in capsys.readouterr().out
    assert "no clip has any audio; the dataset is without it" in caplog.text
    assert list(info(str(tmp_path / "d")).manifest.modalities) == ["video"]
    main(["extract", str(table), str(tmp_path / "e"), "--dtype", "float32", "--keep_constant"])
    assert "never changes" not in capsys.readouterr().out
    assert list(info(str(tmp_path / "e")).manifest.modalities) == ["audio", "video"]


def test_a_prediction_takes_it_as_the_training_data_did(
    films: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for keep in (False, True):
        manifest, _ = made(films, tmp_path / str(keep), ALL, keep_constant=keep)
        model = AWTPN(
            ModelConfig(), {name: m.dim for name, m in manifest.modalities.items()}, ["calm", "happy"]
        )
        model.provenance = manifest.provenance
        answers = dict(Predictor(model).iter_recordings([films / "mute.mkv", films / "nothing.mkv"]))
        mute, nothing = answers.values()
        assert not isinstance(mute, str)
        assert bool(len(mute.weights["audio"])) == keep
        assert isinstance(nothing, str) == (not keep)
    assert "mute.mkv: predicted without its audio: it is constant" in caplog.text
