"""Features of a dataset of recordings: the same as of the media, or of another feature space."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import webdataset
from extraction_support import Counting, Killed, built_in, extracted, files, over_ranks, skipped
from media_support import chirp, numbered, record
from recordings_support import FPS, clips_of, recorded

from shards import pack
from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.extraction.encoders.frames import Frames
from shards.extraction.extract import extract
from shards.extraction.pipeline import decode
from shards.extraction.reopen_encoder import reopen_encoder
from shards.extraction.stored_media import thinned
from shards.format.class_checks import WrongManifest
from shards.format.feature_space import reopenable
from shards.format.index_file import load_index
from shards.format.manifest import parse_manifest
from shards.format.recording import Recording
from shards.format.schema import BadSample, Manifest, Sample
from shards.format.targets import Target
from shards.sources.base import Clip, ClipSource
from shards.sources.packed_recordings import read, recognize
from shards.tools.info import format_info, info

FORMS = {"arrays": {}, "jpeg": {"jpeg": 90}}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    return clips_of(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def form(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def dataset(media: ClipSource, form: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of recordings, of 2 utterances in a shard: its shards are not those of the features."""
    folder = tmp_path_factory.mktemp("packed") / "d"
    extracted(media, folder, clips_per_shard=2, **recorded(**form))
    return folder


@pytest.fixture(scope="module")
def arrays(media: ClipSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with uncompressed pictures."""
    folder = tmp_path_factory.mktemp("arrays") / "d"
    extracted(media, folder, clips_per_shard=2, **recorded())
    return folder


@pytest.fixture
def own(arrays: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(arrays, tmp_path / "own"))


@pytest.fixture
def remote(arrays: Path) -> Iterator[str]:
    """URL of the dataset in an object store."""
    fs, name = fsspec.filesystem("memory"), uuid.uuid4().hex
    for path in arrays.iterdir():
        fs.pipe_file(f"/{name}/d/{path.name}", path.read_bytes())
    yield f"memory://{name}/d"
    fs.rm(f"/{name}", recursive=True)


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """The members of each utterance."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return {s["__key__"]: s for s in webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")}


def shards_of(folder: Path) -> dict[str, bytes]:
    """Shards and indexes; what is skipped is listed with the place of the dataset."""
    return {name: content for name, content in files(folder).items() if name != "skipped.jsonl"}


def pictures_of(sample: dict[str, Any]) -> np.ndarray:
    if "video.npy" in sample:
        return np.asarray(sample["video.npy"])
    return np.stack([value for name, value in sample.items() if name.endswith(".jpg")])


def spaces(manifest: Manifest) -> dict[str, str]:
    return {name: of["space"] for name, of in manifest.provenance["features"].items()}


# --- The same numbers ----------------------------------------------------------------------------


def test_sound_gives_the_features_of_the_media(media: ClipSource, dataset: Path, tmp_path: Path) -> None:
    logmel = open_audio_encoder("logmel")
    of_media = extracted(media, tmp_path / "media", audio=logmel, dtype="float32")
    of_stored = extracted(read(dataset), tmp_path / "stored", audio=logmel, dtype="float32")
    assert shards_of(tmp_path / "stored") == shards_of(tmp_path / "media")
    assert spaces(of_stored) == spaces(of_media)
    assert of_stored.splits == of_media.splits
    assert of_stored.modalities == of_media.modalities
    assert stored(tmp_path / "stored")["clip1"]["audio.npy"].shape == (12, 80)


def test_pictures_are_what_the_encoder_makes_of_the_crops(dataset: Path, tmp_path: Path) -> None:
    crops = stored(dataset)
    encoders: dict[str, Any] = {
        "descriptor": open_video_encoder("descriptor", fps=FPS, step_seconds=0.2),
        "frames": open_video_encoder("frames", fps=FPS, side=16),
    }
    for name, encoder in encoders.items():
        extracted(read(dataset), tmp_path / name, video=encoder, dtype="float32")
        made = stored(tmp_path / name)
        assert made.keys() == crops.keys() - {"sound"}, "a clip without pictures is skipped"
        for key, sample in made.items():
            [wanted] = encoder.encode([pictures_of(crops[key])])
            np.testing.assert_array_equal(sample["video.npy"], wanted)
    assert skipped(tmp_path / "frames") == {
        "sound": f"{dataset}/test-000000.tar: 'sound': no video to make features of"
    }


def test_a_model_of_hugging_face(dataset: Path, tmp_path: Path) -> None:
    from encoders_support import VIDEO

    VIDEO["clip"](tmp_path / "clip")
    encoder = open_video_encoder(str(tmp_path / "clip"), fps=FPS)
    assert encoder is not None
    extracted(read(dataset), tmp_path / "d", video=encoder, dtype="float32", batch=1)
    crops = stored(dataset)
    for key, sample in stored(tmp_path / "d").items():
        [wanted] = encoder.encode([pictures_of(crops[key])])
        np.testing.assert_allclose(sample["video.npy"], wanted, rtol=1e-5, atol=1e-6)


def test_keys_labels_splits_and_metadata_are_carried(
    media: ClipSource, dataset: Path, tmp_path: Path
) -> None:
    given = replace(media, clips=[replace(c, meta={"number": 1, "who": {"a": [1]}}) for c in media.clips[:3]])  # type: ignore[type-var]
    extracted(given, tmp_path / "p", **recorded())
    extracted(given, tmp_path / "media", **built_in())
    extracted(read(tmp_path / "p"), tmp_path / "stored", **built_in())
    wanted = {key: sample["json"] for key, sample in stored(tmp_path / "media").items()}
    assert {key: sample["json"] for key, sample in stored(tmp_path / "stored").items()} == wanted
    assert wanted["clip0"] == {"label": "calm", "number": 1, "who": {"a": [1]}}
    both = extracted(read(dataset), tmp_path / "both", **built_in())
    assert {name: split.class_counts for name, split in both.splits.items()} == {
        "train": [3, 2],
        "test": [1, 1],
    }
    assert (both.classes, both.columns) == (["calm", "loud"], {"number": "int"})


def test_targets_are_carried(media: ClipSource, tmp_path: Path) -> None:
    values = [1.5, None, 3.0, 4.25, 2.0]
    clips = [
        replace(clip, label=None, meta={"valence": value, "arousal": 0.5})
        for clip, value in zip(media.clips[:5], values, strict=True)
        if isinstance(clip, Clip)
    ]
    own = Target("regression", {"valence": [1, 5], "arousal": [0, 1]}, True)
    further = {"arousal": Target("regression", {"arousal": [0, 1]}, False)}
    given = ClipSource(clips, [], {}, target=own, targets=further)
    extracted(given, tmp_path / "p", **recorded())
    of_media = extracted(given, tmp_path / "media", audio=open_audio_encoder("logmel"))
    of_stored = extracted(read(tmp_path / "p"), tmp_path / "d", audio=open_audio_encoder("logmel"))
    assert (of_stored.target, of_stored.targets) == (of_media.target, of_media.targets)
    assert of_stored.columns == {"arousal": "float", "valence": "optional float"}
    assert files(tmp_path / "d") == files(tmp_path / "media")
    assert stored(tmp_path / "d")["clip1"]["json"]["valence"] is None


def test_a_split_alone(arrays: Path, tmp_path: Path) -> None:
    manifest = extracted(read(f"{arrays}#test"), tmp_path / "d", **built_in())
    assert {name: split.utterances for name, split in manifest.splits.items()} == {"test": 2}


# --- Ranks, stops and stores ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(arrays: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files that one process writes."""
    folder = tmp_path_factory.mktemp("alone") / "d"
    extracted(read(arrays), folder, **built_in())
    return files(folder)


@pytest.mark.parametrize("ranks", [2, 3])
def test_shards_do_not_depend_on_the_number_of_ranks(
    arrays: Path, alone: dict[str, bytes], tmp_path: Path, ranks: int
) -> None:
    def one(**rank: Any) -> Any:
        options: dict[str, Any] = {"clips_per_shard": 3, "progress": False}
        return extract(read(arrays), str(tmp_path / "d"), **built_in(), **options, **rank)

    manifest, *others = over_ranks(ranks, one)
    assert others == [None] * (ranks - 1)
    assert files(tmp_path / "d") == alone
    assert manifest == parse_manifest((tmp_path / "d" / "manifest.json").read_text(), "m")


@pytest.mark.parametrize("moved", [False, True])
def test_a_killed_extraction_goes_on_also_where_the_dataset_was_moved(
    arrays: Path, own: Path, tmp_path: Path, moved: bool
) -> None:
    with pytest.raises(Killed):
        extracted(read(arrays), tmp_path / "d", audio=Counting(kill_after=3), batch=1)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").glob("*.tar")}
    assert len(made) == 1
    extracted(read(own if moved else arrays), tmp_path / "d", audio=Counting())
    assert {path: path.stat().st_mtime_ns for path in made} == made, "not made again"
    extracted(read(arrays), tmp_path / "alone", audio=Counting())
    assert shards_of(tmp_path / "d") == shards_of(tmp_path / "alone")


def test_other_recordings_are_another_extraction(media: ClipSource, arrays: Path, tmp_path: Path) -> None:
    extracted(media, tmp_path / "other", clips_per_shard=3, **recorded())
    with pytest.raises(Killed):
        extracted(read(arrays), tmp_path / "d", audio=Counting(kill_after=3), batch=1)
    with pytest.raises(ValueError, match="unfinished extraction"):
        extracted(read(tmp_path / "other"), tmp_path / "d", audio=Counting())


def test_an_object_store(remote: str, alone: dict[str, bytes], tmp_path: Path) -> None:
    source = read(remote, cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.tar")), "only indexes are needed to plan"
    extracted(source, tmp_path / "d", **built_in())
    assert files(tmp_path / "d") == alone
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 4


def test_a_cache_with_a_limit(arrays: Path, remote: str, alone: dict[str, bytes], tmp_path: Path) -> None:
    """It has no room for all shards, so those that were decoded are closed and removed."""
    sizes = [path.stat().st_size for path in sorted(arrays.glob("train-*.tar"))]
    limit = sum(sizes[:2]) + 100_000
    source = read(remote, cache_dir=tmp_path / "cache", cache_limit=str(limit))
    extracted(source, tmp_path / "d", **built_in(), threads=1)
    assert files(tmp_path / "d") == alone
    left = list((tmp_path / "cache").rglob("*.tar"))
    assert len(left) < 4
    assert sum(path.stat().st_size for path in left) <= limit


def test_a_rank_downloads_only_the_shards_that_it_needs(remote: str, tmp_path: Path) -> None:
    def one(rank: int, **more: Any) -> Any:
        source = read(remote, cache_dir=tmp_path / f"cache{rank}")
        return extract(
            source,
            str(tmp_path / "d"),
            **built_in(),
            clips_per_shard=2,
            progress=False,
            rank=rank,
            **more,
        )

    over_ranks(4, one)
    counts = [len(list((tmp_path / f"cache{rank}").rglob("*.tar"))) for rank in range(4)]
    assert counts == [1, 1, 1, 1]


class Failing:
    """A file system's method that fails for tars."""

    def __init__(self, of: Callable[..., Any]) -> None:
        self.of = of

    def __call__(self, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith(".tar"):
            raise PermissionError("no access")
        return self.of(path, *args, **options)


def test_a_store_that_cannot_be_reached_stops_the_extraction(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read(remote, cache_dir=tmp_path / "cache")
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(fs, "get_file", Failing(fs.get_file))
    with pytest.raises(OSError, match="no access"):
        extracted(source, tmp_path / "d", **built_in())
    assert not (tmp_path / "d" / "manifest.json").exists()
    monkeypatch.undo()
    assert extracted(source, tmp_path / "d", **built_in()).skipped == 0


# --- What is missing -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    """Clips of which a stream never changes or cannot be decoded."""
    folder = tmp_path_factory.mktemp("odd")
    moving, still = [numbered(i) for i in range(5)], [numbered(7)] * 5
    clips: list[Clip | BadSample] = []
    for name, pictures, sound in [
        ("both", moving, chirp(0.5)),
        ("mute", moving, np.zeros(8000, np.float32)),
        ("still", still, chirp(0.5)),
    ]:
        path = record(folder / f"{name}.mkv", pictures, codec="ffv1", sound=sound)
        clips.append(Clip(name, "train", "calm", path, path))
    (folder / "broken.wav").write_bytes(b"RIFF")
    clips.append(Clip("broken", "train", "calm", folder / "broken.wav", folder / "both.mkv"))
    return ClipSource(clips, ["calm", "loud"], {})


@pytest.mark.parametrize("kept", [False, True])
def test_streams_that_never_change_or_are_broken(odd: ClipSource, tmp_path: Path, kept: bool) -> None:
    extracted(odd, tmp_path / "p", **recorded(), keep_constant=kept)
    of_media = extracted(odd, tmp_path / "media", **built_in(), dtype="float32")
    of_stored = extracted(read(tmp_path / "p"), tmp_path / "stored", **built_in(), dtype="float32")
    silent = {"taken_as": "missing", "audio": 1, "video": 1}
    assert of_stored.provenance["constant_streams"] == of_media.provenance["constant_streams"] == silent
    wanted, found = stored(tmp_path / "media"), stored(tmp_path / "stored")
    for key, sample in wanted.items():
        assert found[key].keys() == sample.keys()
        assert found[key]["json"] == sample["json"]
    assert found["mute"]["json"]["constant_streams"] == ["audio"]
    assert "broken.wav: not a recording" in found["broken"]["json"]["lacking"]["audio"]
    # Of pictures alone nobody asks what the sound was.
    extracted(read(tmp_path / "p"), tmp_path / "video", video=built_in()["video"])
    assert stored(tmp_path / "video")["mute"]["json"] == {"label": "calm"}


def test_streams_that_were_not_stored_cannot_be_kept(odd: ClipSource, tmp_path: Path) -> None:
    extracted(odd, tmp_path / "p", **recorded())
    extracted(read(tmp_path / "p"), tmp_path / "d", **built_in(), keep_constant=True)
    lacking = stored(tmp_path / "d")["mute"]["json"]["lacking"]
    assert lacking == {
        "audio": f"{tmp_path}/p/train-000000.tar: 'mute': its audio never changes and was not stored; store "
        "the recordings again with keep_constant (--keep_constant)"
    }


def test_words_are_not_carried(media: ClipSource, tmp_path: Path) -> None:
    """They are personal data, which only --store_text stores."""
    first = media.clips[0]
    assert isinstance(first, Clip)
    spoken = replace(first, meta={"text_words": ["what", "a", "day"], "text_spans": [[0, 1]], "number": 3})
    extracted(replace(media, clips=[spoken]), tmp_path / "p", **recorded())
    extracted(read(tmp_path / "p"), tmp_path / "d", audio=open_audio_encoder("logmel"))
    assert stored(tmp_path / "d")["clip0"]["json"] == {"label": "calm", "number": 3}


# --- Damage --------------------------------------------------------------------------------------


def damage(folder: Path, key: str, member: str) -> None:
    """Flip a bit of a member's last byte."""
    manifest = parse_manifest((folder / "manifest.json").read_text(), "m")
    for split in manifest.splits.values():
        for entry in split.shards:
            with open(folder / entry.index, "rb") as file:
                index = load_index(file, entry, manifest)
            if key not in index.key.tolist():
                continue
            row = index.key.tolist().index(key)
            if member == "json":
                at = int(index.json_offset[row])
            else:
                modality = manifest.modalities[member]
                at = int(index.offset[member][row]) + int(index.steps[member][row]) * modality.step_bytes - 1
            content = bytearray((folder / entry.name).read_bytes())
            content[at] ^= 1
            (folder / entry.name).write_bytes(content)
            return
    raise AssertionError(key)


def test_a_damaged_stream_costs_this_stream(own: Path, tmp_path: Path) -> None:
    damage(own, "clip1", "video")
    damage(own, "clip2", "json")
    manifest = extracted(read(own), tmp_path / "d", **built_in())
    found = stored(tmp_path / "d")
    lacking = found["clip1"]["json"]["lacking"]
    assert lacking == {
        "video": f"{own}/train-000000.tar: the CRC-32 of video of 'clip1' is not that of the index: damaged; "
        "pack it again"
    }
    assert "audio.npy" in found["clip1"]
    assert manifest.skipped == 1
    assert skipped(tmp_path / "d")["clip2"].startswith(f"{own}/train-000001.tar: 'clip2'")
    with pytest.raises(ValueError, match=r"utterance 'clip2': .*train-000001\.tar"):
        extracted(read(own), tmp_path / "e", **built_in(), on_bad="refuse")


def test_a_damaged_shard_costs_its_rows(own: Path, tmp_path: Path) -> None:
    shard = own / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    (own / "test-000000.tar").unlink()
    manifest = extracted(read(own), tmp_path / "d", **built_in())
    causes = skipped(tmp_path / "d")
    assert causes.keys() == {"clip2", "clip3", "sound", "pictures"}
    assert "train-000001.tar" in causes["clip3"]
    assert "by the manifest: damaged or replaced; pack it again" in causes["clip3"]
    assert "no such file, though the manifest names it" in causes["sound"]
    assert {name: split.utterances for name, split in manifest.splits.items()} == {"train": 3}


def test_a_damaged_index_costs_its_rows(own: Path, tmp_path: Path) -> None:
    name = parse_manifest((own / "manifest.json").read_text(), "m").splits["train"].shards[0].index
    content = bytearray((own / name).read_bytes())
    content[-1] ^= 1
    (own / name).write_bytes(content)
    extracted(read(own), tmp_path / "d", **built_in())
    causes = skipped(tmp_path / "d")
    assert causes.keys() == {"train-000000.tar#0", "train-000000.tar#1"}
    assert "not the index the manifest names" in causes["train-000000.tar#1"]


def test_a_shard_that_was_replaced_in_the_store_costs_its_rows(remote: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    path = f"{remote.removeprefix('memory:/')}/train-000001.tar"
    fs.pipe_file(path, bytes(fs.info(path)["size"]))
    extracted(read(remote, cache_dir=tmp_path / "cache"), tmp_path / "d", **built_in())
    causes = skipped(tmp_path / "d")
    assert causes.keys() == {"clip2", "clip3"}
    assert all("its content is not what the manifest names" in cause for cause in causes.values())


def test_classes_in_another_order_stop_the_extraction(own: Path, tmp_path: Path) -> None:
    path = own / "manifest.json"
    path.write_text(
        path.read_text().replace('"calm"', '"x"').replace('"loud"', '"calm"').replace('"x"', '"loud"')
    )
    with pytest.raises(WrongManifest, match=r"class"):
        extracted(read(own), tmp_path / "d", **built_in())
    assert not (tmp_path / "d" / "manifest.json").exists()


# --- Feature spaces ------------------------------------------------------------------------------


def test_pictures_are_of_another_feature_space(media: ClipSource, dataset: Path, tmp_path: Path) -> None:
    of_media = extracted(media, tmp_path / "media", **built_in())
    of_stored = extracted(read(dataset), tmp_path / "stored", **built_in())
    assert spaces(of_stored)["audio"] == spaces(of_media)["audio"]
    assert spaces(of_stored)["video"] != spaces(of_media)["video"]
    settings = of_stored.provenance["features"]["video"]["settings"]
    packed = parse_manifest((dataset / "manifest.json").read_text(), "m").provenance
    assert settings["recorded"] == packed["features"]["video"]["settings"]
    told = of_stored.provenance["recordings"]
    assert (of_stored.provenance["corpus"], told["dataset"], told["skipped"]) == ("clips", str(dataset), 0)
    assert told["stored"]["audio"] == "sound at 16000 Hz in steps of 0.1 s"
    assert told["made"]["features"] == packed["features"]
    assert told["made"]["extraction"] == packed["extraction"] != of_stored.provenance["extraction"]
    shown = " ".join(format_info(info(str(tmp_path / "stored"))).split())
    assert "recorded {id frames, version 1, fps 10, side 32, largest_side 64, faces none" in shown
    assert "pictures of 32 x 32 at 10 per second" in shown


@pytest.mark.parametrize(
    ("rate", "kind", "exact"),
    [(16000, "pcm_s16le", True), (8000, "pcm_s16le", False), (16000, "pcm_f32le", False)],
)
def test_sound_that_is_not_stored_as_it_was_is_of_another_space(
    tmp_path: Path, rate: int, kind: str, exact: bool
) -> None:
    path = record(tmp_path / "a.wav", sound=chirp(0.7), sound_codec=kind)
    media = ClipSource([Clip("a", "train", "calm", path, None)], ["calm"], {})
    logmel = open_audio_encoder("logmel")
    packed = extracted(media, tmp_path / "p", audio=open_audio_encoder("waveform", rate=rate))
    assert packed.provenance["rounded_streams"] == {"audio": int((rate, kind) != (16000, "pcm_s16le"))}
    of_media = extracted(media, tmp_path / "media", audio=logmel, dtype="float32")
    of_stored = extracted(read(tmp_path / "p"), tmp_path / "d", audio=logmel, dtype="float32")
    assert (spaces(of_stored) == spaces(of_media)) == exact
    assert (files(tmp_path / "d") == files(tmp_path / "media")) == exact
    settings = of_stored.provenance["features"]["audio"]["settings"]
    wanted = None if exact else {"id": "waveform", "version": 1, "rate": rate}
    assert settings.get("recorded") == wanted
    if not exact:
        assert stored(tmp_path / "p")["a"]["json"]["rounded_streams"] == ["audio"]
        assert stored(tmp_path / "d")["a"]["json"] == {"label": "calm"}


def test_the_encoder_is_opened_again_to_encode_media(
    media: ClipSource, form: dict[str, Any], tmp_path: Path
) -> None:
    """To predict for media, they go through what the dataset of recordings did to them, and its features."""
    recorders = {
        "audio": open_audio_encoder("waveform", rate=8000),
        "video": Frames(side=32, fps=20.0, **form),
    }
    extracted(media, tmp_path / "p", **recorders)
    again = {"audio": open_audio_encoder("waveform"), "video": Frames(side=24, fps=20.0)}
    extracted(read(tmp_path / "p"), tmp_path / "again", **again)
    for folder in (tmp_path / "p", tmp_path / "again"):
        of_stored = extracted(read(folder), tmp_path / f"{folder.name}-d", **built_in(), dtype="float32")
        recorded = reopenable(of_stored.provenance)
        opened = {name: reopen_encoder(name, of["settings"]) for name, of in recorded.items()}
        assert opened["audio"].settings == recorded["audio"]["settings"]
        assert opened["video"].settings == recorded["video"]["settings"]
        assert (opened["audio"].rate, opened["video"].fps) == (8000, 20.0)
        features = stored(tmp_path / f"{folder.name}-d")
        for clip in media.clips[:2]:
            assert isinstance(clip, Clip)
            decoded = decode(clip, opened)
            for name, encoder in opened.items():
                [found] = encoder.encode([decoded.media[name]])
                np.testing.assert_array_equal(found, features[clip.key][f"{name}.npy"])


@pytest.mark.parametrize(
    "recorded",
    [5, {}, {"id": "waveform", "rate": 0}, {"id": "waveform", "rate": 0.5}, {"id": "frames", "rate": 8000}],
)
def test_a_forged_record_of_stored_sound_is_refused(recorded: object) -> None:
    logmel = open_audio_encoder("logmel")
    assert logmel is not None
    with pytest.raises(ValueError, match=r"^audio: .*(the record of these|cannot be 0)"):
        reopen_encoder("audio", logmel.settings | {"recorded": recorded})


# --- Rates and refusals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pictures", "k", "chosen"),
    [
        (6, 1, [0, 1, 2, 3, 4, 5]),
        (6, 2, [0, 2, 4]),
        (7, 2, [0, 2, 4]),
        (9, 3, [1, 4, 7]),
        (10, 3, [1, 4, 7]),
        (11, 3, [1, 4, 7, 10]),
        (2, 5, [1]),
        (0, 3, []),
    ],
)
def test_each_kth_picture(pictures: int, k: int, chosen: list[int]) -> None:
    assert thinned(np.arange(pictures), k).tolist() == chosen


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_fewer_pictures_are_those_of_media_at_this_rate(tmp_path: Path, k: int) -> None:
    """For an odd k the same ones; for an even k the ones before, where the media show a new picture then."""
    path = record(tmp_path / "a.mkv", [numbered(i) for i in range(45)], fps=30, codec="ffv1")
    media = ClipSource([Clip("a", "train", "calm", None, path)], ["calm"], {})
    extracted(media, tmp_path / "p", video=open_video_encoder("frames", fps=30, side=48))
    found = {}
    for name, source in (("media", media), ("stored", read(tmp_path / "p"))):
        extracted(source, tmp_path / name, video=open_video_encoder("frames", fps=30 / k, side=48))
        found[name] = stored(tmp_path / name)["a"]["video.npy"]
    crops = stored(tmp_path / "p")["a"]["video.npy"]
    np.testing.assert_array_equal(found["stored"], thinned(crops, k))
    assert len(found["stored"]) in (len(found["media"]), len(found["media"]) - 1)
    if k % 2:
        np.testing.assert_array_equal(found["stored"], found["media"][: len(found["stored"])])


@pytest.mark.parametrize("fps", [4.0, 20.0, 6.7])
def test_a_rate_that_is_not_stored_is_refused(arrays: Path, tmp_path: Path, fps: float) -> None:
    told = rf"video has 10 pictures per second\. .* not {fps:g} per second: give --fps 10, or 10 divided by"
    with pytest.raises(ValueError, match=told):
        extracted(read(arrays), tmp_path / "d", video=open_video_encoder("descriptor", fps=fps))
    assert not (tmp_path / "d").exists()


def test_faces_of_faces_are_refused(media: ClipSource, arrays: Path, tmp_path: Path) -> None:
    packed = read(arrays)
    faces = replace(packed.stored["video"], settings={"id": "frames", "faces": {"detector": "x"}})
    source = replace(packed, stored=packed.stored | {"video": faces})
    with pytest.raises(ValueError, match=r"its pictures are faces already, .*: leave it out"):
        extracted(source, tmp_path / "d", video=open_video_encoder("descriptor", faces="opencv"))
    # Of whole pictures the detector finds what it finds: here nothing.
    with pytest.raises(ValueError, match="nothing to extract"):
        extracted(packed, tmp_path / "d", video=open_video_encoder("descriptor", faces="opencv"))


def test_features_are_refused(media: ClipSource, arrays: Path, tmp_path: Path) -> None:
    logmel = open_audio_encoder("logmel")
    extracted(media, tmp_path / "features", audio=logmel)
    assert recognize(tmp_path / "features")
    with pytest.raises(ValueError, match=r"features: holds features, not recordings, .*: give the media"):
        read(tmp_path / "features")
    extracted(media, tmp_path / "mixed", audio=logmel, video=recorded()["video"])
    mixed = read(tmp_path / "mixed")
    with pytest.raises(ValueError, match=r"its modality audio holds features, .* \(--audio none\)"):
        extracted(mixed, tmp_path / "d", **built_in())
    assert not (tmp_path / "d" / "manifest.json").exists()
    manifest = extracted(mixed, tmp_path / "d", video=built_in()["video"])
    assert list(manifest.modalities) == ["video"], "the features of sound are ignored"
    with pytest.raises(ValueError, match=r"holds no texts, .* give --text none"):
        extracted(read(arrays), tmp_path / "e", text=open_encoder_of_text())
    extracted(media, tmp_path / "sound", audio=open_audio_encoder("waveform"))
    with pytest.raises(ValueError, match="sound: holds recordings of audio, and none of video: name an"):
        read(tmp_path / "sound", modalities=["video"])
    with pytest.raises(ValueError, match=r"nothing: no such folder"):
        read(tmp_path / "nothing")


def open_encoder_of_text() -> Any:
    from shards.extraction.encoders import open_text_encoder

    return open_text_encoder("chargrams")


def test_what_is_recognized(arrays: Path, tmp_path: Path) -> None:
    assert recognize(arrays)
    assert recognize(arrays / "manifest.json")
    (tmp_path / "manifest.json").write_text('{"modalities": 3}')
    assert not recognize(tmp_path)
    (tmp_path / "manifest.json").write_text("no JSON")
    assert not recognize(tmp_path)
    assert not recognize(tmp_path / "nothing")


def test_recordings_that_another_program_packed(tmp_path: Path) -> None:
    """Of them it is not known whether sound was rounded, nor how pictures were made."""
    generator = np.random.default_rng(0)
    samples = [
        Sample(
            f"u{i}",
            "train",
            "a",
            {
                "audio": generator.integers(-9000, 9000, 4000, np.int16),
                "video": generator.integers(0, 255, (5, 8, 8, 3), np.uint8),
            },
        )
        for i in range(2)
    ]
    forms = {
        "audio": Recording("waveform", 16000.0, [800]),
        "video": Recording("frames", 10.0, [8, 8, 3]),
    }
    pack(samples, str(tmp_path / "p"), classes=["a"], recordings=forms, progress=False)
    manifest = extracted(read(tmp_path / "p"), tmp_path / "d", **built_in(), dtype="float32")
    settings = {name: of["settings"]["recorded"] for name, of in manifest.provenance["features"].items()}
    assert settings == {
        "audio": {"id": "waveform", "version": 1, "rate": 16000},
        "video": {"id": "frames", "fps": 10.0, "shape": [8, 8, 3]},
    }
    sound = samples[0].features["audio"]
    assert sound is not None
    [wanted] = built_in()["audio"].encode([(sound / 32768).astype(np.float32)])
    np.testing.assert_array_equal(stored(tmp_path / "d")["u0"]["audio.npy"], wanted)
    with pytest.raises(ValueError, match="is not the one that was recorded"):
        reopen_encoder("video", manifest.provenance["features"]["video"]["settings"])
