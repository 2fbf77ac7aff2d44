"""Small imitations of the corpora in the form in which they are distributed: media, layouts and known flaws.

Each `write_*` writes one layout into a folder and returns the path that a reader takes. Media are encoded
once per session (`clip_bank`) and copied from there.
"""

from __future__ import annotations

import atexit
import csv
import json
import pickle
import shutil
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from shards.extraction.shard_jobs import mark_missing_files
from shards.format.schema import BadSample
from shards.sources.base import Clip, ClipSource

SECONDS = 1.0
SIZE = (64, 48)  # width, height of every picture
FPS = 10
RATE = 16_000
RED, BLUE = (200, 30, 30), (30, 30, 200)  # left and right half of a picture, so that a crop changes its mean

# A file that no decoder can read, like one that was truncated or overwritten.
GARBAGE = b"\x00\x01 no media at all " * 40
# Content of a file "._name", which macOS writes beside each file that it copies to a foreign file system.
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


# --- Media ---------------------------------------------------------------------------------------


def write_sound(path: Path, seconds: float = SECONDS, hertz: float = 220.0) -> Path:
    """Write a tone whose amplitude grows with its pitch; the suffix chooses the format: .wav, .flac, .mp3."""
    import av

    codec = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame"}[path.suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        _encode_sound(container, container.add_stream(codec, rate=RATE, layout="mono"), seconds, hertz)
    return path


def write_video(
    path: Path, seconds: float = SECONDS, *, sound: bool = True, picture: bool = True, hertz: float = 220.0
) -> Path:
    """Write a video, red on the left and blue on the right, with a tone; .avi (DivX), .mp4 or .flv.

    Args:
        path: file to write.
        seconds: its duration.
        sound, picture: whether it has such a stream.
        hertz: pitch of the tone.
    """
    import av

    codecs = {".avi": ("mpeg4", "libmp3lame"), ".mp4": ("mpeg4", "aac"), ".flv": ("flv", "libmp3lame")}
    video_codec, audio_codec = codecs[path.suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream(video_codec, rate=FPS) if picture else None
        # FLV supports only 11,025, 22,050 and 44,100 Hz.
        audio = container.add_stream(audio_codec, rate=44_100, layout="mono") if sound else None
        if video is not None:
            video.width, video.height = SIZE
            video.pix_fmt = "yuv420p"
            _encode_picture(container, video, seconds)
        if audio is not None:
            _encode_sound(container, audio, seconds, hertz)
    return path


def _encode_picture(container: Any, stream: Any, seconds: float) -> None:
    import av

    width, height = SIZE
    for i in range(round(seconds * FPS)):
        image = np.zeros((height, width, 3), np.uint8)
        image[:, : width // 2] = RED
        image[:, width // 2 :] = BLUE
        image[i % height] = 255  # something moves
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = i, Fraction(1, FPS)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _encode_sound(container: Any, stream: Any, seconds: float, hertz: float) -> None:
    import av

    rate = stream.rate
    time = np.arange(round(seconds * rate)) / rate
    wave = (np.sin(2 * np.pi * hertz * time) * min(hertz * 40, 30_000)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    resampler = av.AudioResampler(stream.format, stream.layout, rate, frame_size=stream.frame_size or None)
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def write_empty_track(path: Path) -> Path:
    """Write a video with an audio stream that has no packets."""
    import av

    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=FPS)
        video.width, video.height = SIZE
        container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        for light in range(5):
            picture = np.full((*SIZE[::-1], 3), 50 * light, np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(video.encode(None))
    return path


@cache
def clip_bank() -> Path:
    """A folder for encoded clips that `put` copies."""
    bank = Path(mkdtemp(prefix="clips-"))
    atexit.register(shutil.rmtree, bank, ignore_errors=True)
    return bank


@cache
def clip(name: str, hertz: float) -> Path:
    """A clip of this pitch, encoded at its first use: tone.wav, both.avi, both.mp4 or both.flv."""
    path = clip_bank() / f"{hertz:g}" / name
    return write_sound(path, hertz=hertz) if name == "tone.wav" else write_video(path, hertz=hertz)


def put(name: str, path: Path, hertz: float = 220.0) -> Path:
    """Copy the bank's clip `name` to `path`; give held-out splits another pitch, so that clips differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(clip(name, hertz), path)
    return path


def put_bytes(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- IEMOCAP -------------------------------------------------------------------------------------

# Turns of each dialog: (turn, emotion code, begin, end). In Ses01F_* the female speaker wears the markers.
IEMOCAP_TURNS = (
    ("F000", "neu", 0.1, 0.5),
    ("M000", "fru", 0.3, 0.8),
    ("F001", "exc", 0.5, 0.9),
    ("M001", "xxx", 0.6, 0.9),
    ("F002", "ang", 0.0, 0.3),
    ("M002", "sad", 0.2, 0.7),
    ("M003", "hap", 0.1, 0.4),
    ("F003", "sur", 0.4, 0.6),
)


# What is said in turns; the others have no line in the transcriptions.
IEMOCAP_TEXTS = {
    "F000": "Excuse me.",
    "M000": "It's na\xefve. [LAUGHTER]",
    "F001": "Well -- yes.",
    "F002": "No!",
    "M003": "",
}


def write_iemocap(
    root: Path, sessions: Iterable[int] = (1, 2), video: bool = True, media: bool = True
) -> Path:
    """Write `IEMOCAP_full_release` with an improvised and a scripted dialog per session.

    The audio of Ses01F_impro01_M002 is missing; with `video`, so is the video of each scripted dialog
    Ses01M_script01_1. Without `media` there are only text files.

    Returns:
        The folder of Session1, Session2, ...
    """
    for session in sessions:
        folder = root / f"Session{session}"
        for dialog in (f"Ses{session:02}F_impro01", f"Ses{session:02}M_script01_1"):
            annotation = folder / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
            annotation.parent.mkdir(parents=True, exist_ok=True)
            annotation.write_text(iemocap_annotation(dialog), encoding="latin-1")
            put_bytes(annotation.with_name(f"._{dialog}.txt"), APPLE_DOUBLE)
            for kind in ("Attribute", "Categorical", "Self-evaluation"):
                put_bytes(
                    annotation.parent / kind / f"{dialog}_e1.txt", b"Ses01F_impro01_F000 :Neutral; ()\n"
                )
            write_iemocap_texts(folder, dialog)
            for who, *_ in IEMOCAP_TURNS if media else ():
                if (dialog, who) != ("Ses01F_impro01", "M002"):
                    sound = folder / "sentences" / "wav" / dialog / f"{dialog}_{who}.wav"
                    put("tone.wav", sound, hertz=200.0 + 20 * session)
            put_bytes(folder / "sentences" / "wav" / dialog / f"._{dialog}_F000.wav", APPLE_DOUBLE)
            if video and media and dialog != "Ses01M_script01_1":
                put("both.avi", folder / "dialog" / "avi" / "DivX" / f"{dialog}.avi")
    return root


def write_iemocap_texts(session: Path, dialog: str) -> None:
    """Write the transcriptions of a dialog, and the alignment of two of its turns."""
    lines = [f"{dialog}_{who} [000.1000-000.5000]: {text}" for who, text in IEMOCAP_TEXTS.items()]
    lines[1:1] = ["M: Yeah.", f"{dialog}_MXX0 [001.0000-001.1000]: Mmhmm."]
    path = session / "dialog" / "transcriptions" / f"{dialog}.txt"
    put_bytes(path, ("\n".join(lines) + "\n").encode("latin-1"))
    put_bytes(path.with_name(f"._{dialog}.txt"), APPLE_DOUBLE)
    for who, words in (("F000", ("EXCUSE(2)", "ME")), ("F001", ("WELL", "YES"))):
        aligned = "\t SFrm  EFrm    SegAScr Word\n\t    0     9     -40413 <s>\n"
        for i, word in enumerate(words):
            aligned += f"\t {10 + 10 * i:4d}  {19 + 10 * i:4d}    -104131 {word}\n"
        aligned += (
            "\t   30    35      -1203 <sil>\n\t   36    39       -203 </s>\n Total score:     -250000\n"
        )
        put_bytes(session / "sentences/ForcedAlignment" / dialog / f"{dialog}_{who}.wdseg", aligned.encode())


def iemocap_annotation(dialog: str) -> str:
    """The text of an evaluation file: a line per turn, and the annotators' lines below it."""
    text = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
    for who, code, begin, end in IEMOCAP_TURNS:
        text += (
            f"[{begin:.4f} - {end:.4f}]\t{dialog}_{who}\t{code}\t[2.5000, 3.5000, 1.6667]\n"
            "C-E2:\tNeutral;\t()\n"
            "C-F1:\tNeutral; Sadness;\t(na\xefve)\n"
            "A-E3:\tval 3; act 2; dom  2;\t()\n\n"
        )
    return text


# --- MELD ----------------------------------------------------------------------------------------

MELD_FOLDERS = {
    "train": "train_splits",
    "dev": "dev_splits_complete",
    "test": "output_repeated_splits_test",
}
# Rows of each split: (dialogue, utterance, speaker, emotion). File names occur in several splits.
MELD_ROWS = {
    "train": ((0, 0, "Monica", "joy"), (0, 1, "Mike\x92s Mom", "sadness"), (125, 3, "Phoebe", "neutral")),
    "dev": ((0, 0, "Ross", "anger"), (110, 7, "Rachel", "fear")),
    "test": ((0, 0, "Joey", "surprise"), (1, 0, "Mrs. Green", "disgust")),
}
MELD_HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
)


def write_meld(root: Path, nested: bool = True, encoding: str = "utf-8", media: bool = True) -> Path:
    """Write MELD's splits: nested as the archives unpack (`train/train_splits`), or all folders side by side.

    As in the real corpus, `train/dia125_utt3.mp4` is damaged, `dev/dia110_utt7.mp4` is missing, and the
    folder of the test split has clips without a row. Without `media` there are only the three tables.

    Returns:
        The folder to read.
    """
    for number_of_split, (split, rows) in enumerate(MELD_ROWS.items()):
        hertz = 220.0 + 20 * number_of_split
        base = root / split if nested else root
        clips = base / MELD_FOLDERS[split]
        for dialogue, number, *_ in rows if media else ():
            if (split, dialogue, number) != ("dev", 110, 7):
                put("both.mp4", clips / f"dia{dialogue}_utt{number}.mp4", hertz)
        if split == "train" and media:
            put_bytes(clips / "dia125_utt3.mp4", GARBAGE)
        if split == "test" and media:
            put("both.mp4", clips / "final_videos_testdia0_utt0.mp4")
        if media:
            put_bytes(clips / "._dia0_utt0.mp4", APPLE_DOUBLE)
        # In the archive, the table of the training split is in its folder, the others are one level up.
        table = (base if split == "train" else root) / f"{split}_sent_emo.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_bytes(meld_table(rows).encode(encoding))
    return root


def meld_table(rows: Sequence[tuple[int, int, str, str]]) -> str:
    text = MELD_HEADER + "\r\n"
    for number, (dialogue, utterance, speaker, emotion) in enumerate(rows, start=1):
        text += (
            f'{number},"Oh my God, he\x92s lost it.",{speaker},{emotion},neutral,{dialogue},{utterance},4,7,'
            '"00:20:57,256","00:21:00,049"\r\n'
        )
    return text


# --- CMU-MOSEI -----------------------------------------------------------------------------------

MOSEI_DIMENSIONS = ["sentiment", "happy", "sad", "anger", "surprise", "disgust", "fear"]
# Utterances of each video: begin, end, then the seven labels; not in order of time.
MOSEI_LABELS: dict[str, list[list[float]]] = {
    "-3g5yACwYnA": [[2, 4, 1.0, 2 / 3, 0, 0, 0, 0, 0], [0, 2, -0.5, 0, 1, 1, 0, 0, 0]],
    "hh04W3xXa5s": [[-0.4, 1.5, 0.0, 0, 0, 0, 0, 0, 0], [1.5, 4, -2.7, 0, 0, 0, 0, 1 / 3, 2]],
    "GdFP_p4eQX0": [[0, 4, 2.6, 0, 0, 0, 3, 0, 0], [3.95, 3.99, 1, 1, 0, 0, 0, 0, 0]],
    "98765": [[0, 4, 0.4, 1, 0, 0, 0, 0, 0]],
}
MOSEI_FOLDS = {
    "standard_train_fold": ["-3g5yACwYnA", "notLabelled0"],
    "standard_valid_fold": ["hh04W3xXa5s"],
    "standard_test_fold": ["GdFP_p4eQX0"],
}
MOSEI_STEPS_PER_SECOND = {"audio": 10, "video": 5}
MOSEI_DIMS = {"audio": 4, "video": 3}


def write_mosei(root: Path) -> Path:
    """Write labels, COVAREP, OpenFace, words and their vectors as computational sequences, and the folds
    as the SDK's file and as JSON.

    Feature 0 of a step is the time of its middle, in seconds. Some audio values are -inf and NaN;
    GdFP_p4eQX0 has no video; 98765 is in no fold. hh04W3xXa5s has no words before 2 s.

    Returns:
        The folder of `CMU_MOSEI_Labels.csd`.
    """
    root.mkdir(parents=True, exist_ok=True)
    labels = {video: (np.array(rows)[:, 2:], np.array(rows)[:, :2]) for video, rows in MOSEI_LABELS.items()}
    write_sequence(root / "CMU_MOSEI_Labels.csd", "All Labels", labels, {"dimension names": MOSEI_DIMENSIONS})
    audio = {video: mosei_steps("audio") for video in MOSEI_LABELS}
    audio["-3g5yACwYnA"][0][2, 1] = -np.inf
    audio["-3g5yACwYnA"][0][25, 2:] = np.nan
    write_sequence(root / "CMU_MOSEI_COVAREP.csd", "COVAREP", audio)
    video = {name: mosei_steps("video") for name in MOSEI_LABELS if name != "GdFP_p4eQX0"}
    write_sequence(root / "CMU_MOSEI_VisualOpenFace2.csd", "OpenFace_2", video)
    write_sequence(root / "CMU_MOSEI_TimestampedWords.csd", "words", mosei_words())
    vectors = {
        video: (np.ones((len(words), 3), np.float32) * np.arange(len(words))[:, None], intervals)
        for video, (words, intervals) in mosei_words().items()
    }
    write_sequence(root / "CMU_MOSEI_TimestampedWordVectors.csd", "glove_vectors", vectors)
    lines = [f"{name}={videos!r}" for name, videos in MOSEI_FOLDS.items()]
    (root / "cmu_mosei_std_folds.py").write_text("\n\n".join(lines) + "\n")
    folds = dict(zip(("train", "val", "test"), MOSEI_FOLDS.values(), strict=True))
    (root / "folds.json").write_text(json.dumps(folds))
    return root


def write_mosi(root: Path) -> Path:
    """Write CMU-MOSI's labels, COVAREP, FACET and words: the videos and folds of `write_mosei`.

    Returns:
        The folder of `CMU_MOSI_Opinion_Labels.csd`.
    """
    root.mkdir(parents=True, exist_ok=True)
    labels = {
        video: (np.array(rows)[:, 2:3].astype(np.float32), np.array(rows)[:, :2])
        for video, rows in MOSEI_LABELS.items()
    }
    write_sequence(root / "CMU_MOSI_Opinion_Labels.csd", "Opinion Segment Labels", labels)
    for modality, (name, sequence) in {
        "audio": ("CMU_MOSI_COVAREP.csd", "COVAREP"),
        "video": ("CMU_MOSI_Visual_Facet_42.csd", "FACET_4.2"),
    }.items():
        write_sequence(root / name, sequence, {video: mosei_steps(modality) for video in MOSEI_LABELS})
    write_sequence(root / "CMU_MOSI_TimestampedWords.csd", "words", mosei_words())
    lines = [f"{name} = {videos!r}" for name, videos in MOSEI_FOLDS.items()]
    (root / "cmu_mosi_std_folds.py").write_text("\n".join(lines) + "\n")
    return root


# Words of each recording; "sp" is a pause.
MOSEI_WORDS = {
    "-3g5yACwYnA": "sp the first half sp and the second one sp",
    "hh04W3xXa5s": "sp sp sp sp sp na\xefve talk sp",
    "GdFP_p4eQX0": "i love it",
    "98765": "nobody hears this",
}


def mosei_words() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Words [T, 1], byte strings, and intervals [T, 2] of each recording: they fill 4 s."""
    found = {}
    for video, text in MOSEI_WORDS.items():
        words = np.array([[word.encode()] for word in text.split()], "S32")
        edges = np.linspace(0, 4, len(words) + 1)
        found[video] = words, np.stack([edges[:-1], edges[1:]], 1)
    return found


def mosei_steps(modality: str, seconds: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Features [T, D] float32 and intervals [T, 2] of a recording."""
    steps = round(seconds * MOSEI_STEPS_PER_SECOND[modality])
    edges = np.linspace(0, seconds, steps + 1)
    features = np.random.default_rng(0).normal(size=(steps, MOSEI_DIMS[modality])).astype(np.float32)
    features[:, 0] = (edges[:-1] + edges[1:]) / 2
    return features, np.stack([edges[:-1], edges[1:]], 1)


def write_aligned_mosei(root: Path) -> Path:
    """Write the same data in segments `video[i]`, as the SDK aligns them; without folds."""
    root.mkdir(parents=True, exist_ok=True)
    labels, sequences = {}, {"audio": {}, "video": {}}
    for video, rows in MOSEI_LABELS.items():
        for i, (begin, end, *values) in enumerate(rows):
            labels[f"{video}[{i}]"] = np.array([values]), np.array([[begin, end]])
            for modality, segments in sequences.items():
                features, intervals = mosei_steps(modality)
                # The SDK takes every step that overlaps the segment.
                inside = (intervals[:, 1] > begin) & (intervals[:, 0] < end)
                segments[f"{video}[{i}]"] = features[inside], intervals[inside]
    write_sequence(root / "All Labels.csd", "All Labels", labels)
    write_sequence(root / "COAVAREP.csd", "COAVAREP", sequences["audio"])
    write_sequence(root / "FACET 4.2.csd", "FACET 4.2", sequences["video"])
    return root


def write_sequence(
    path: Path,
    name: str,
    data: Mapping[str, tuple[np.ndarray, np.ndarray]],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """A `.csd` as the SDK writes it: NAME/data/ID/{features, intervals}, NAME/metadata/KEY (JSON)."""
    import h5py

    with h5py.File(path, "w") as file:
        for video, (features, intervals) in data.items():
            file[f"{name}/data/{video}/features"] = features
            file[f"{name}/data/{video}/intervals"] = intervals
        for key, value in {"root name": name, **(metadata or {})}.items():
            text = file.create_dataset(f"{name}/metadata/{key}", (1,), dtype=h5py.string_dtype())
            text[0] = json.dumps(value)


# --- MMSA ----------------------------------------------------------------------------------------

MMSA_LENGTHS = {"train": ((3, 2), (5, 4), (1, 3)), "valid": ((2, 2), (4, 1)), "test": ((5, 4), (2, 3))}
MMSA_SCORES = {"train": (-1.2, 0.0, 2.6), "valid": (0.4, -3.0), "test": (1.0, -0.2)}


def mmsa_splits(*, lengths: bool = True, front: bool = False) -> dict[str, dict[str, Any]]:
    """The content of an MMSA pickle: audio [U, 5, 4], vision [U, 4, 3], padded with zeros to those steps.

    Args:
        lengths: with `audio_lengths` and `vision_lengths` ("unaligned"), or without ("aligned").
        front: the padding is in front instead of behind.
    """
    rng = np.random.default_rng(0)
    splits = {}
    for split, steps in MMSA_LENGTHS.items():
        record: dict[str, Any] = {
            "id": [f"video{split}$_${i}" for i in range(len(steps))],
            "raw_text": [f"utterance {i}" for i in range(len(steps))],
            "text": rng.normal(size=(len(steps), 6, 2)).astype(np.float32),
            "text_bert": rng.normal(size=(len(steps), 3, 6)).astype(np.float32),
            "regression_labels": np.array(MMSA_SCORES[split]),
            "classification_labels": np.sign(MMSA_SCORES[split]) + 1,
            "annotations": [
                ["Negative", "Neutral", "Positive"][int(np.sign(s)) + 1] for s in MMSA_SCORES[split]
            ],
        }
        for which, (name, most, dim) in enumerate((("audio", 5, 4), ("vision", 4, 3))):
            padded = np.zeros((len(steps), most, dim), np.float32)
            for i, of in enumerate(steps):
                place = slice(most - of[which], most) if front else slice(0, of[which])
                padded[i, place] = rng.normal(size=(of[which], dim))
            record[name] = padded
            if lengths:
                record[f"{name}_lengths"] = [of[which] for of in steps]
        splits[split] = record
    splits["train"]["audio"][0, (2 if front else 1), 1] = -np.inf
    return splits


def write_mmsa(path: Path, splits: Mapping[str, Any] | None = None, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(dict(splits or mmsa_splits()), protocol=protocol))
    return path


# --- Recordings ----------------------------------------------------------------------------------


def write_tree(root: Path, splits: Sequence[str] = ("train", "test")) -> Path:
    """Write `[split/]<label>/clip.ext` for two labels: an .mp4, an .avi and a .wav each."""
    for number, split in enumerate(splits or [""]):
        for label in ("calm", "happy"):
            folder, hertz = root / split / label, 220.0 + 20 * number
            put("both.mp4", folder / "a.mp4", hertz)
            put("both.avi", folder / "b.take 2.avi", hertz)
            put("tone.wav", folder / "c.WAV", hertz)
            put_bytes(folder / "._a.mp4", APPLE_DOUBLE)
            put_bytes(folder / "notes.txt", b"not a clip")
    return root


def write_clip_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a table of clips, CSV or JSONL by the suffix; its columns are those of the first row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# --- What was read -------------------------------------------------------------------------------


def good(source: ClipSource) -> dict[str, Clip]:
    """The clips with sound or pictures, by key; checks that keys differ, labels are classes, files exist."""
    unreadable = bad(source)
    clips = [clip for clip in source.clips if isinstance(clip, Clip) and clip.key not in unreadable]
    found = {clip.key: clip for clip in clips}
    assert len(found) == len(clips)
    assert {clip.label for clip in clips} <= (set(source.classes) or {None})
    for clip in clips:
        assert any(path.is_file() for path in (clip.audio, clip.video) if path)
    return found


def bad(source: ClipSource) -> dict[str, str]:
    """The causes of clips that cannot be used where sound and pictures are wanted, by key."""
    wanted = mark_missing_files(source, ("audio", "video"))
    return {clip.key: clip.cause for clip in wanted.clips if isinstance(clip, BadSample)}


def texts(source: ClipSource) -> dict[str, str | None]:
    """The words of each clip, by key."""
    clips = [clip for clip in source.clips if isinstance(clip, Clip)]
    return {clip.key: " ".join(clip.text.words) if clip.text else None for clip in clips}
