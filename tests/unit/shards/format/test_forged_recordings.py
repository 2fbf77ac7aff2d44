"""Recordings in manifests and indexes that nobody extracted: refused in one line, before memory is taken."""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings_support import SIDE, clips_of, recorded
from shards_support import changed

from shards import FeatureStream
from shards.extraction.extract import extract
from shards.format.jpeg import decode_jpeg_into, encode_jpeg, least_jpeg_bytes
from shards.format.manifest import parse_manifest
from shards.format.schema import RECORDINGS_SINCE, TARGETS_SINCE, dump_manifest
from shards.tools.info import info, preview
from shards.tools.verify import verify

Arrays = dict[str, np.ndarray]
Record = dict[str, Any]
INDEX = "train-000000.index.npz"


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset with pictures as arrays, and one with pictures as JPEG."""
    folder = tmp_path_factory.mktemp("recordings")
    source = clips_of(folder / "clips")
    for name, options in (("arrays", {}), ("jpeg", {"jpeg": 90})):
        extract(source, str(folder / name), **recorded(**options), progress=False)
    return {name: folder / name for name in ("arrays", "jpeg")}


@pytest.fixture
def dataset(extracted: dict[str, Path], tmp_path: Path) -> Path:
    """The one with JPEG, to change."""
    return shutil.copytree(extracted["jpeg"], tmp_path / "d")


def refusal(call: Callable[[], Any]) -> str:
    """The message of a refusal, which has one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is what the caller looks at)
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


def batches(url: str, **options: Any) -> list[Any]:
    return list(FeatureStream(url, prefetch=0, global_batch_size=5, **options).epoch(0))


# --- Manifests -----------------------------------------------------------------------------------


def of(modality: str, **fields: Any) -> Callable[[Record], None]:
    return lambda record: record["modalities"][modality].update(fields)


def recording(modality: str, **fields: Any) -> Callable[[Record], None]:
    return lambda record: record["modalities"][modality]["recording"].update(fields)


def without(modality: str, field: str) -> Callable[[Record], Any]:
    return lambda record: record["modalities"][modality]["recording"].pop(field)


def large_pictures(side: int) -> Callable[[Record], None]:
    """Pictures that are said to be large, in files that are small."""

    def change(record: Record) -> None:
        of("video", dim=side * side * 3)(record)
        recording("video", shape=[side, side, 3])(record)

    return change


FORGED: dict[str, tuple[Callable[[Record], Any], str]] = {
    "recording a list": (of("audio", recording=[]), "audio: field 'recording' must be dict, not list"),
    "recording a number": (of("audio", recording=0), "audio: field 'recording' must be dict, not int"),
    "recording empty": (of("audio", recording={}), "audio.recording: field 'kind' is missing"),
    "no kind": (without("audio", "kind"), "field 'kind' is missing"),
    "no rate": (without("video", "rate"), "field 'rate' is missing"),
    "no shape": (without("video", "shape"), "field 'shape' is missing"),
    "kind": (recording("audio", kind="midi"), "kind 'midi' is not one of waveform, frames"),
    "kind a number": (recording("audio", kind=1), "field 'kind' must be str"),
    "long kind": (recording("audio", kind="x" * 100_000), "is not one of waveform, frames"),
    "kind of the other": (recording("audio", kind="frames"), r"shape is \[1600\]; of frames it is"),
    "rate 0": (recording("audio", rate=0), "rate is 0; it must be above 0"),
    "rate negative": (recording("audio", rate=-16000.0), "rate is -16000; it must be above 0"),
    "rate NaN": (recording("audio", rate=math.nan), "rate is nan; it must be above 0"),
    "rate infinite": (recording("video", rate=math.inf), "rate is inf; it must be above 0, and at most 1e"),
    "rate of 300 digits": (recording("video", rate=10**299), r"rate is 1e\+299; it must be above 0"),
    "rate text": (recording("video", rate="10"), "field 'rate' must be float, not '10'"),
    "rate true": (recording("video", rate=True), "field 'rate' must be float, not True"),
    "shape a number": (recording("audio", shape=1600), "field 'shape' must be list"),
    "shape empty": (recording("audio", shape=[]), r"shape is \[\]; of waveform it is \[samples\]"),
    "shape 0": (recording("audio", shape=[0]), r"shape is \[0\]; of waveform"),
    "shape negative": (recording("audio", shape=[-1600]), r"shape\[0\] must be a count, not -1600"),
    "shape of floats": (recording("audio", shape=[1600.0]), r"shape\[0\] must be a count, not 1600.0"),
    "shape huge": (recording("audio", shape=[2**40]), r"shape is \[1099511627776\]; of waveform"),
    "shape of a huge product": (recording("video", shape=[2**27, 2**27, 3]), r"of frames it is \[height"),
    "shape of 10,000 sides": (recording("video", shape=[2] * 10_000), r"of frames it is \[height"),
    "gray pictures": (recording("video", shape=[SIDE, SIDE, 1]), r"of frames it is \[height, width, 3\]"),
    "JPEG of sound": (
        recording("audio", jpeg_quality=90),
        "jpeg_quality is 90; it is 1 to 95, of pictures only",
    ),
    "quality 0": (recording("video", jpeg_quality=0), "jpeg_quality is 0; it is 1 to 95"),
    "quality 96": (recording("video", jpeg_quality=96), "jpeg_quality is 96; it is 1 to 95"),
    "quality a fraction": (recording("video", jpeg_quality=90.5), "'jpeg_quality' must be a count, not 90.5"),
    "dim": (
        of("audio", dim=1601),
        "dim 1601 and dtype 'int16' are not those of sound at 16000 Hz in steps of",
    ),
    "dim of another shape": (
        of("video", dim=SIDE * SIDE),
        "dim 1024 and dtype 'uint8' are not those of pictures",
    ),
    "dtype": (of("audio", dtype="float16"), "dim 1600 and dtype 'float16' are not those of sound"),
    "dtype of the other": (
        of("video", dtype="int16"),
        "dim 3072 and dtype 'int16' are not those of pictures",
    ),
    "integers that are not recordings": (of("audio", recording=None), "dtype one of"),
    "version 2": (lambda r: r.update(schema_version=TARGETS_SINCE), "a recording in schema version 2"),
    "large pictures in small files": (large_pictures(8192), "features of .* do not fit into"),
    "steps beyond the bytes": (
        lambda r: r["splits"]["train"]["shards"][0]["steps"].update(video=10_000),
        "features of .* do not fit into",
    ),
    "steps that do not add up": (
        lambda r: r["splits"]["train"]["shards"][0]["steps"].update(audio=56),
        "audio has other numbers of steps by its parts: {'steps': 57, 'shards': 56}",
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_recordings_are_refused(dataset: Path, name: str) -> None:
    change, told = FORGED[name]
    url = changed(dataset, change)
    with pytest.raises(ValueError, match=told):
        FeatureStream(url)
    for look in (lambda: FeatureStream(url), lambda: info(url), lambda: verify(url, progress=False)):
        assert "manifest.json: " in refusal(look)


def test_features_that_claim_to_be_recordings_in_an_early_version_are_refused(dataset: Path) -> None:
    """An early program would read them as features: one manifest must not mean two things."""

    def change(record: Record) -> None:
        record.update(schema_version=TARGETS_SINCE)
        for modality in record["modalities"].values():
            modality["dtype"] = "float16"

    assert "modalities.audio: a recording in schema version 2; recordings are of version 3" in refusal(
        lambda: FeatureStream(changed(dataset, change))
    )


@pytest.mark.parametrize("form", ["arrays", "jpeg"])
def test_a_manifest_is_written_as_it_is_read(extracted: dict[str, Path], form: str) -> None:
    text = (extracted[form] / "manifest.json").read_text()
    manifest = parse_manifest(text, "m")
    assert (manifest.schema_version, RECORDINGS_SINCE) == (3, 3)
    assert dump_manifest(manifest) == text


def test_shapes_of_other_pictures_are_told_by_the_index(extracted: dict[str, Path], tmp_path: Path) -> None:
    """The same number of numbers: 16 x 64 in place of 32 x 32."""
    for form in ("arrays", "jpeg"):
        url = changed(
            shutil.copytree(extracted[form], tmp_path / form), recording("video", shape=[16, 64, 3])
        )
        kind = {"arrays": "uint8", "jpeg": "jpg"}[form]
        told = f"{INDEX}: video is {kind} [steps, 32, 32, 3], by the manifest {kind} [steps, 16, 64, 3]"
        for look in (
            lambda url=url: batches(url),
            lambda url=url: info(url),
            lambda url=url: list(preview(url)),
        ):
            assert told in refusal(look)


# --- Indexes -------------------------------------------------------------------------------------


def forge(folder: Path, change: Callable[[Arrays], Any]) -> str:
    """Change the arrays of an index, and let the manifest name it as it is then."""
    with np.load(folder / INDEX) as file:
        arrays = {key: values.copy() for key, values in file.items()}
    change(arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    content = buffer.getvalue()
    (folder / INDEX).write_bytes(content)
    fields = {"index_sha256": hashlib.sha256(content).hexdigest(), "index_bytes": len(content)}
    return changed(folder, lambda record: record["splits"]["train"]["shards"][0].update(fields))


def put(name: str, at: Any, value: Any) -> Callable[[Arrays], None]:
    return lambda arrays: arrays[name].__setitem__(at, value)


def add(name: str, at: Any, value: int) -> Callable[[Arrays], None]:
    return lambda arrays: arrays[name].__setitem__(at, arrays[name][at] + value)


def cast(name: str, dtype: Any) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: arrays[name].astype(dtype)})


def drop(name: str) -> Callable[[Arrays], Any]:
    return lambda arrays: arrays.pop(name)


def short(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: arrays[name][:-1]})


def the_same_picture_twice(arrays: Arrays) -> None:
    for what in ("offset", "size"):
        arrays[f"picture.{what}.video"][1] = arrays[f"picture.{what}.video"][0]


def a_picture_over_sound(arrays: Arrays) -> None:
    arrays["picture.offset.video"][1] = arrays["offset.audio"][1] // 512 * 512


def a_picture_fewer(arrays: Arrays) -> None:
    """One picture less of the first clip, one more of the second: it would get a picture of another clip."""
    arrays["steps.video"][0] -= 1
    arrays["steps.video"][1] += 1


FIT = "numbers of samples of audio do not fit its steps of 1600"
PLACE = "a picture of video is empty, or does not begin where a member of a tar does"
INDEXES: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "more samples than its steps": (put("samples.audio", 0, 8001), FIT),
    "samples of a step less": (put("samples.audio", 0, 6400), FIT),
    "no samples": (put("samples.audio", 0, 0), FIT),
    "samples negative": (put("samples.audio", 0, -1), FIT),
    "samples near 2^63": (put("samples.audio", 0, 2**63 - 1), FIT),
    "samples near -2^63": (put("samples.audio", 0, -(2**63)), FIT),
    "samples without sound": (lambda a: (put("steps.audio", 0, 0)(a), add("steps.audio", 1, 5)(a)), FIT),
    "samples as floats": (cast("samples.audio", np.float64), "'samples.audio' is float64"),
    "samples narrow": (cast("samples.audio", np.int32), "'samples.audio' is int32"),
    "samples of an utterance fewer": (short("samples.audio"), r"'samples.audio' is int64 \(4,\)"),
    "no array of samples": (drop("samples.audio"), "array 'samples.audio' is missing"),
    "picture past the end": (put("picture.offset.video", 3, 2**40), "reaches past the end of its shard"),
    "picture near 2^63": (put("picture.offset.video", 3, 2**63 - 512), "reaches past the end of its shard"),
    "picture at 0": (put("picture.offset.video", 3, 0), "begins before the first member of its shard"),
    "picture before the shard": (put("picture.offset.video", 3, -512), "begins before the first member"),
    "picture within a block": (add("picture.offset.video", 3, 16), PLACE),
    "picture without bytes": (put("picture.size.video", 3, 0), PLACE),
    "picture of negative size": (put("picture.size.video", 3, -700), PLACE),
    "picture too small": (
        put("picture.size.video", 3, 5),
        "has 5 bytes; a JPEG of 32 x 32 x 3 has at least 6",
    ),
    "picture without end": (put("picture.size.video", 3, 2**31 - 1), "reaches past the end of its shard"),
    "picture over the next": (put("picture.size.video", 3, 2000), "overlaps what is before it"),
    "the same picture twice": (the_same_picture_twice, "overlaps what is before it"),
    "picture over sound": (a_picture_over_sound, "overlaps what is before it"),
    "pictures of another clip": (a_picture_fewer, "video does not begin where its first picture does"),
    "first picture elsewhere": (add("offset.video", 0, 512), "video does not begin where its first picture"),
    "a picture less": (short("picture.offset.video"), r"'picture.offset.video' is int64 \(54,\)"),
    "a size less": (short("picture.size.video"), r"'picture.size.video' is int32 \(54,\)"),
    "sizes wide": (cast("picture.size.video", np.int64), "'picture.size.video' is int64"),
    "offsets as floats": (cast("picture.offset.video", np.float64), "'picture.offset.video' is float64"),
    "no offsets of pictures": (drop("picture.offset.video"), "array 'picture.offset.video' is missing"),
    "no sizes of pictures": (drop("picture.size.video"), "array 'picture.size.video' is missing"),
    "negative steps": (put("steps.video", 0, -5), "an utterance has -5 steps of video|picture.offset.video"),
    "steps without end": (put("steps.video", 0, 2**31 - 1), "'picture.offset.video' is int64"),
    "steps of sound without end": (put("steps.audio", 0, 2**31 - 1), "steps of audio, 57 by the manifest"),
    "form": (
        lambda a: a.update({"form.video": np.array("uint8 [steps, 32, 32, 3]")}),
        r"video is uint8 \[steps, 32, 32, 3\], by the manifest jpg \[steps, 32, 32, 3\]",
    ),
}


@pytest.mark.parametrize("name", INDEXES)
def test_forged_indexes_of_recordings_are_refused(dataset: Path, name: str) -> None:
    change, told = INDEXES[name]
    url = forge(dataset, change)
    with pytest.raises(ValueError, match=f"{INDEX}: .*({told})"):
        batches(url)
    for look in (lambda: info(url), lambda: list(preview(url))):
        assert INDEX in refusal(look)
    fault, *_ = verify(url, progress=False).faults
    assert (fault.file, fault.key) == (INDEX, None)
    assert "\n" not in fault.cause


def swap_pictures(arrays: Arrays) -> None:
    """The second and the third picture of the first clip: its film in another order."""
    for what in ("offset", "size"):
        values = arrays[f"picture.{what}.video"]
        values[[1, 2]] = values[[2, 1]]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (put("samples.audio", 0, 7999), "samples of audio: the index differs from the shard; pack it again"),
        (swap_pictures, "places of pictures of video: the index differs from the shard; pack it again"),
        (add("picture.size.video", 1, -1), "sizes of pictures of video: the index differs from the shard"),
    ],
)
def test_an_index_of_right_form_that_tells_otherwise_is_found_by_verify(
    dataset: Path, change: Callable[[Arrays], Any], cause: str
) -> None:
    fault, *others = verify(forge(dataset, change), progress=False).faults
    assert (fault.file, fault.key) == ("train-000000.tar", "clip0")
    assert {other.key for other in others} <= {"clip0"}
    assert any(each.cause.startswith(cause) for each in (fault, *others))


# --- Pictures ------------------------------------------------------------------------------------


def with_size(content: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header claims another size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def damaged_jpegs() -> dict[str, bytes]:
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    whole = encode_jpeg(picture, 90)
    return {
        "empty": b"",
        "no JPEG": b"GIF89a" + bytes(500),
        "header alone": whole[:2],
        "cut short": whole[: len(whole) // 2],
        "another size": encode_jpeg(picture[:16], 90),
        "65,535 x 65,535 by its header": with_size(whole, 65535, 65535),
        "height 0 by its header": with_size(whole, 0, SIDE),
    }


@pytest.mark.parametrize("name", damaged_jpegs())
@pytest.mark.filterwarnings("error")
def test_damaged_jpegs_are_refused(name: str) -> None:
    """Also a header that Pillow refuses as a decompression bomb: by an exception of its own, or a warning."""
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    message = refusal(lambda: decode_jpeg_into(damaged_jpegs()[name], picture))
    assert "not a JPEG that can be read (" in message or "is RGB of 32 x 16, not RGB of 32 x 32" in message


@pytest.mark.filterwarnings("error")
def test_a_jpeg_of_more_pixels_than_pillow_likes_is_refused() -> None:
    """Between its two limits, Pillow only warns."""
    picture = np.empty((SIDE, SIDE, 3), np.uint8)
    content = with_size(encode_jpeg(np.zeros((SIDE, SIDE, 3), np.uint8), 90), 10_000, 10_000)
    assert "not a JPEG that can be read (" in refusal(lambda: decode_jpeg_into(content, picture))


@pytest.mark.parametrize("side", [1, 8, 32, 224, 1000])
@pytest.mark.parametrize("quality", [1, 95])
def test_no_picture_is_smaller_than_the_least(side: int, quality: int) -> None:
    """A picture of one color is the smallest of all."""
    content = encode_jpeg(np.full((side, side, 3), 128, np.uint8), quality)
    assert 1 <= least_jpeg_bytes(side * side * 3) <= len(content)


def test_a_forged_size_of_pictures_takes_no_memory(dataset: Path) -> None:
    """8192 x 8192: 55 pictures would be 11 GB. The shard's entry claims that it has the bytes for them."""

    def change(record: Record) -> None:
        large_pictures(8192)(record)
        for split in record["splits"].values():
            for entry in split["shards"]:
                entry["bytes"] = 10**10

    folder = dataset
    url = changed(folder, change)
    form = {"form.video": np.array("jpg [steps, 8192, 8192, 3]")}
    forge(folder, lambda arrays: arrays.update(form))
    told = f"{INDEX}: a picture of video has "
    for look in (lambda: batches(url), lambda: info(url), lambda: list(preview(url))):
        assert told in refusal(look)
    assert json.loads((folder / "manifest.json").read_text())["schema_version"] == RECORDINGS_SINCE
