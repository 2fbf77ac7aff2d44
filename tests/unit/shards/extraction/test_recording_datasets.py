"""Datasets of recordings: the same bytes from any ranks and after a kill; what is missing, and what fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from cli_support import awtpn, refusal
from corpora_support import GARBAGE, put_bytes
from extraction_support import Killed, extracted, files, over_ranks, skipped
from media_support import chirp, numbered, record
from recordings_support import clips_of, recorded

from shards.extraction.encoders import open_audio_encoder, open_video_encoder
from shards.extraction.encoders.frames import Frames
from shards.extraction.extract import extract
from shards.format.manifest import parse_manifest
from shards.format.recording import Recording
from shards.format.schema import Modality, Sample
from shards.packing.validation import PackingState, validate
from shards.sources.base import Clip, ClipSource
from shards.tools.verify import verify

FORMS = {"arrays": {}, "jpeg": {"jpeg": 90}}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ClipSource:
    return clips_of(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def form(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def alone(
    source: ClipSource, form: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files that one process writes."""
    folder = tmp_path_factory.mktemp("alone") / "d"
    extracted(source, folder, clips_per_shard=2, **recorded(**form))
    return files(folder)


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    return {sample["__key__"]: sample for sample in samples}


# --- The same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_shards_do_not_depend_on_the_number_of_ranks(
    source: ClipSource, form: dict[str, Any], alone: dict[str, bytes], tmp_path: Path, ranks: int
) -> None:
    def one(**rank: Any) -> Any:
        options: dict[str, Any] = {"clips_per_shard": 2, "progress": False}
        return extract(source, str(tmp_path / "d"), **recorded(**form), **options, **rank)

    manifest, *others = over_ranks(ranks, one)
    assert others == [None] * (ranks - 1)
    assert files(tmp_path / "d") == alone
    assert len(alone) == 2 * (3 + 1), "4 shards with their indexes, and no record is left"
    assert manifest == parse_manifest((tmp_path / "d" / "manifest.json").read_text(), "m")


class Dying(Frames):
    """It raises `Killed` after so many clips."""

    clips = 3

    def encode(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        self.clips -= len(clips)
        if self.clips < 0:
            raise Killed
        return super().encode(clips)


def test_a_killed_extraction_goes_on(
    source: ClipSource, form: dict[str, Any], alone: dict[str, bytes], tmp_path: Path
) -> None:
    encoders = recorded(**form)
    with pytest.raises(Killed):
        extracted(
            source,
            tmp_path / "d",
            clips_per_shard=2,
            audio=encoders["audio"],
            video=Dying(side=32, fps=10.0, **form),
        )
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").glob("*.tar")}
    assert 1 <= len(made) < 4
    assert not (tmp_path / "d" / "manifest.json").exists()
    extracted(source, tmp_path / "d", clips_per_shard=2, **encoders)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "not made again"
    assert files(tmp_path / "d") == alone


@pytest.mark.parametrize("options", [{"batch": 1}, {"threads": 1}, {"batch": 3, "threads": 2}])
def test_batches_and_threads_change_no_byte(
    source: ClipSource, form: dict[str, Any], alone: dict[str, bytes], tmp_path: Path, options: dict[str, int]
) -> None:
    extracted(source, tmp_path / "d", clips_per_shard=2, **recorded(**form), **options)
    assert files(tmp_path / "d") == alone


def test_other_pictures_are_another_extraction(source: ClipSource, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        extracted(source, tmp_path / "d", clips_per_shard=2, video=Dying(side=32, fps=10.0, jpeg=90))
    for video in (Frames(side=32, fps=10.0), Frames(side=32, fps=10.0, jpeg=91), Frames(side=33, jpeg=90)):
        with pytest.raises(ValueError, match="unfinished extraction"):
            extracted(source, tmp_path / "d", clips_per_shard=2, video=video)


# --- The manifest --------------------------------------------------------------------------------


def test_the_manifest_describes_the_recordings(
    source: ClipSource, form: dict[str, Any], tmp_path: Path
) -> None:
    manifest = extracted(source, tmp_path / "d", **recorded(**form), provenance={"command": "awtpn extract"})
    assert manifest.schema_version == 3
    assert manifest.modalities == {
        "audio": Modality(1600, "int16", Recording("waveform", 16000.0, [1600])),
        "video": Modality(3072, "uint8", Recording("frames", 10.0, [32, 32, 3], form.get("jpeg"))),
    }
    train, test = manifest.splits["train"], manifest.splits["test"]
    assert (train.utterances, train.class_counts, train.steps) == (5, [3, 2], {"audio": 57, "video": 55})
    assert (test.utterances, test.class_counts, test.steps) == (2, [1, 1], {"audio": 7, "video": 6})
    assert train.moments == test.moments == {}, "recordings have no means and deviations"
    assert manifest.columns == {"number": "int"}
    provenance = manifest.provenance
    assert (provenance["corpus"], provenance["command"]) == ("clips", "awtpn extract")
    assert provenance["features"]["audio"]["settings"]["id"] == "waveform"
    settings = {"id": "frames", "version": 1, "fps": 10.0, "side": 32, "largest_side": 64, "faces": "none"}
    assert provenance["features"]["video"]["settings"] == settings | form
    assert {"av", "numpy", "pillow"} <= provenance["versions"].keys()
    assert "warning" not in provenance
    assert verify(str(tmp_path / "d")).faults == []


def test_a_dataset_of_features_keeps_its_version(source: ClipSource, tmp_path: Path) -> None:
    manifest = extracted(source, tmp_path / "d", audio=open_audio_encoder("logmel"))
    assert manifest.schema_version == 2
    assert "recording" not in (tmp_path / "d" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("audio", "video", "shapes"),
    [
        ("waveform", "descriptor", {"audio": (5, 1600), "video": (5, 148)}),
        ("logmel", "frames", {"audio": (5, 80), "video": (5, 32, 32, 3)}),
    ],
)
def test_recordings_beside_features(
    source: ClipSource, tmp_path: Path, audio: str, video: str, shapes: dict[str, tuple[int, ...]]
) -> None:
    options = {"side": 32} if video == "frames" else {}
    encoders = {"audio": open_audio_encoder(audio), "video": open_video_encoder(video, fps=10.0, **options)}
    manifest = extracted(source, tmp_path / "d", **encoders)
    assert manifest.schema_version == 3
    feature = "audio" if audio == "logmel" else "video"
    assert manifest.modalities[feature].recording is None
    assert manifest.modalities[feature].dtype == "float16"
    assert list(manifest.splits["train"].moments) == [feature]
    # The features are the same as without recordings beside them.
    extracted(source, tmp_path / "features", **{feature: encoders[feature]})
    both, without = stored(tmp_path / "d"), stored(tmp_path / "features")
    for key, sample in without.items():
        np.testing.assert_array_equal(sample[f"{feature}.npy"], both[key][f"{feature}.npy"])
    for name, shape in shapes.items():
        assert both["clip0"][f"{name}.npy"].shape == shape
    assert ("num_samples" in both["clip0"]["json"]) == (audio == "waveform")
    assert verify(str(tmp_path / "d")).faults == []


# --- What is missing, and what fails -------------------------------------------------------------


def test_a_modality_that_no_clip_has_is_left_out(
    source: ClipSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mute = replace(source, clips=[clip for clip in source.clips if clip.key == "pictures"])
    manifest = extracted(mute, tmp_path / "d", **recorded(jpeg=90))
    assert list(manifest.modalities) == list(manifest.provenance["features"]) == ["video"]
    assert "no clip has any audio; the dataset is without it" in caplog.text
    deaf = replace(source, clips=[clip for clip in source.clips if clip.key == "sound"])
    manifest = extracted(deaf, tmp_path / "e", **recorded(jpeg=90))
    assert list(manifest.modalities) == list(manifest.provenance["features"]) == ["audio"]
    assert stored(tmp_path / "e")["sound"]["json"]["num_samples"] == {"audio": 11200}


def test_clips_that_fail_are_skipped_with_their_cause(source: ClipSource, tmp_path: Path) -> None:
    first = source.clips[0]
    assert isinstance(first, Clip)
    broken = put_bytes(tmp_path / "broken.mkv", GARBAGE)
    noise = record(tmp_path / "nan.wav", sound=np.full(800, np.nan, np.float32), sound_codec="pcm_f32le")
    bad = [
        replace(first, key="gone", audio=tmp_path / "gone.wav", video=None),
        replace(first, key="broken", audio=broken, video=broken),
        replace(first, key="nan", audio=noise, video=None),
        replace(first, key="counted", meta={"num_samples": 3}),
        replace(first, key="mute", audio=None, meta={"num_samples": {"audio": 3}}),
        replace(first, key="clip1"),
    ]
    manifest = extracted(replace(source, clips=[*source.clips, *bad]), tmp_path / "d", **recorded(jpeg=90))
    causes = skipped(tmp_path / "d")
    assert causes.keys() == {"gone", "broken", "nan", "counted", "mute", "clip1"}
    assert manifest.skipped == 6
    assert causes["gone"] == f"{tmp_path / 'gone.wav'}: no such file"
    assert "broken.mkv: not a recording" in causes["broken"]
    assert "its sound has values that are not numbers (NaN)" in causes["nan"]
    assert causes["mute"] == causes["counted"], "its index would have the length of no sound"
    assert causes["counted"] == "metadata must not be named 'num_samples' beside sound; rename that column"
    assert sum(split.utterances for split in manifest.splits.values()) == 7


def test_num_samples_is_a_name_like_any_other_without_sound(source: ClipSource, tmp_path: Path) -> None:
    clips = [replace(clip, meta={"num_samples": 3}) for clip in source.clips if isinstance(clip, Clip)]
    video = recorded()["video"]
    manifest = extracted(replace(source, clips=[c for c in clips if c.video]), tmp_path / "d", video=video)
    assert manifest.columns == {"num_samples": "int"}


def test_an_array_of_another_form_is_refused() -> None:
    recordings = {name: encoder.recording for name, encoder in recorded().items()}
    state = PackingState(["calm"], np.dtype("float16"), recordings=recordings)
    sound, pictures = np.ones(7, np.int16), np.ones((2, 32, 32, 3), np.uint8)

    def sample(**features: Any) -> Sample:
        return Sample("u", "train", "calm", features)

    for bad in (sound.astype(np.float32), sound[:, None], pictures):
        with pytest.raises(ValueError, match=r"audio is .*, and the dataset has sound at 16000 Hz in steps"):
            validate(sample(audio=bad), state)
    for bad in (pictures.astype(np.int16), pictures[:, :31], pictures[..., :1], sound):
        with pytest.raises(ValueError, match=r"video is .*, and the dataset has pictures of 32 x 32 at 10"):
            validate(sample(video=bad), state)
    encoded = validate(sample(audio=sound, video=pictures), state)
    assert encoded.arrays["audio"].shape == (1, 1600)


@pytest.mark.parametrize("kept", [False, True])
def test_digital_silence_and_still_pictures(tmp_path: Path, kept: bool) -> None:
    moving, still = [numbered(i) for i in range(5)], [numbered(7)] * 5
    clips = []
    for name, pictures, sound in [
        ("both", moving, chirp(0.5)),
        ("mute", moving, np.zeros(8000, np.float32)),
        ("still", still, chirp(0.5)),
    ]:
        path = record(tmp_path / f"{name}.mkv", pictures, codec="ffv1", sound=sound)
        clips.append(Clip(name, "train", "calm", path, path))
    source = ClipSource(clips, ["calm", "loud"], {})
    manifest = extracted(source, tmp_path / "d", **recorded(), keep_constant=kept)
    found = stored(tmp_path / "d")
    taken = {"taken_as": "present"} if kept else {"taken_as": "missing", "audio": 1, "video": 1}
    assert manifest.provenance["constant_streams"] == taken
    assert ("audio.npy" in found["mute"], "video.npy" in found["still"]) == (kept, kept)
    if kept:
        assert found["mute"]["audio.npy"].shape == (5, 1600)
        assert not found["mute"]["audio.npy"].any()
        assert found["mute"]["json"]["num_samples"] == {"audio": 8000}
        assert (found["still"]["video.npy"] == found["still"]["video.npy"][0]).all()
    else:
        assert found["mute"]["json"] == {"label": "calm", "constant_streams": ["audio"]}
        assert found["still"]["json"]["constant_streams"] == ["video"]


class Many(Frames):
    """As if a clip had 10,002 pictures, picture i of level i modulo 256."""

    def encode(self, clips: list[np.ndarray]) -> list[np.ndarray]:
        levels = (np.arange(10_002) % 256).astype(np.uint8)
        return [np.broadcast_to(levels[:, None, None, None], (10_002, 1, 1, 3)) for _ in clips]


def test_more_than_ten_thousand_pictures(source: ClipSource, tmp_path: Path) -> None:
    """webdataset writes members by name, so "10000" would come before "9999"."""
    first = replace(source, clips=source.clips[:1])
    manifest = extracted(first, tmp_path / "d", video=Many(side=1, jpeg=90))
    assert manifest.splits["train"].steps == {"video": 10_002}
    sample = stored(tmp_path / "d")["clip0"]
    assert sum(name.endswith(".jpg") for name in sample) == 10_002
    for number in (0, 9, 9_999, 10_000, 10_001):
        assert abs(int(sample[f"video.{number:05d}.jpg"][0, 0, 0]) - number % 256) < 4


# --- The command line ----------------------------------------------------------------------------


def test_the_command_line(source: ClipSource, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    rows = [f"{c.key},{c.split},{c.label},{c.audio or c.video}" for c in source.clips]  # type: ignore[union-attr]
    table.write_text("\n".join(["key,split,label,path", *rows]) + "\n")
    words = ["extract", str(table), str(tmp_path / "d"), "--audio", "waveform", "--video", "frames"]
    form = ["--audio_rate", "8000", "--audio_step", "0.05", "--fps", "5", "--video_side", "24"]
    awtpn(*words, *form, "--video_jpeg", "80")
    manifest = parse_manifest((tmp_path / "d" / "manifest.json").read_text(), "m")
    assert manifest.modalities["audio"].recording == Recording("waveform", 8000.0, [400])
    assert manifest.modalities["video"].recording == Recording("frames", 5.0, [24, 24, 3], 80)
    refused = [*words[:2], str(tmp_path / "e"), *words[3:]]
    told = "step_seconds=3e-05 at rate=16000 is 0.48 samples; a step has a whole number of samples"
    assert told in refusal(*refused, "--audio_step", "0.00003")
    assert not (tmp_path / "e").exists()
