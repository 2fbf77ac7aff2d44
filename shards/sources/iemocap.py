"""IEMOCAP: five sessions of an actress and an actor, improvised and scripted dialogs.

The corpus (Busso et al., 2008) is given on request at https://sail.usc.edu/iemocap/. As it unpacks:

    IEMOCAP_full_release/
      Session1/ ... Session5/
        dialog/EmoEvaluation/Ses01F_impro01.txt           turns: times, label, valence, activation, dominance
        dialog/avi/DivX/Ses01F_impro01.avi                both speakers side by side
        dialog/transcriptions/Ses01F_impro01.txt          what is said in each turn
        sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav     one file per turn
        sentences/ForcedAlignment/Ses01F_impro01/Ses01F_impro01_F000.wdseg     times of its words

Sound is the turn's own file. Its picture is the dialog's between the turn's times, cropped to the half where
its speaker sits. The letter in a dialog's name (Ses01*F*_impro01) is the actor who wears the motion-capture
markers, as the README of the release says. That actor is assumed to sit on the LEFT and the other on the
RIGHT. We know of no statement of the sides by the owner; public preprocessing crops in this way, for example
find_speaker in extractionmapCreator.py of github.com/IoannisKansizoglou/Iemocap-preprocess. Check a frame of
your copy; `markers_side="right"` swaps the sides.

The text of a turn is its line in the transcriptions, with marks such as [LAUGHTER]; a turn without a line
has none. The times of its words are taken from the forced alignment if that has the same words.

Label sets, as in the literature:

- 4: angry, happy (with excited), neutral, sad: 5,531 turns of the full corpus;
- 6: angry, happy, excited, neutral, sad, frustrated: 7,380 turns.

Other labels (surprise, fear, disgust, other, and "xxx" where the annotators did not agree) are left out and
counted in the manifest's provenance.

Every dataset declares the target "vad": valence, activation and dominance, the means over the annotators.
With `--target vad` it is the dataset's own, and all 10,039 turns are packed, whatever their label; they have
no classes unless a label set is given. The annotators' scale is 1 to 5, but some means of the release are 0.5
or 5.5, which public code for these dimensions cuts to the scale (for example
github.com/bagustris/dser_with_text). Here they are kept: the range of the target is 0.5 to 5.5, and a turn
with a mean outside of it is listed as bad.

Evaluation is leave-one-session-out. All turns are in one split, "all", with metadata `session` (Ses01 ...
Ses05) to select by, as `awtpn cross-validate --by session` does for each of them; `test_session=5` (and
`val_session=4`) makes fixed splits instead. From the archive to a trained model:

    awtpn extract IEMOCAP_full_release data/iemocap --format iemocap
    awtpn shards info data/iemocap
    awtpn train --config configs/iemocap.yaml --data.train data/iemocap

and of valence, activation and dominance:

    awtpn extract IEMOCAP_full_release data/iemocap-vad --format iemocap --target vad
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from shards.format.schema import BadSample
from shards.format.targets import CLASSES, Target, values_of
from shards.sources.base import TRANSCRIPTS, Clip, ClipSource
from shards.sources.reading.transcripts import Transcript, checked_text, decode_text, transcript_of

# Class names in label order, and the codes of the corpus that belong to each.
LABEL_SETS: dict[int, dict[str, tuple[str, ...]]] = {
    4: {"angry": ("ang",), "happy": ("hap", "exc"), "neutral": ("neu",), "sad": ("sad",)},
    6: {
        "angry": ("ang",),
        "happy": ("hap",),
        "excited": ("exc",),
        "neutral": ("neu",),
        "sad": ("sad",),
        "frustrated": ("fru",),
    },
}
CODES = ("ang", "hap", "exc", "neu", "sad", "fru", "sur", "fea", "dis", "oth", "xxx")

# [6.2901 - 8.2357]	Ses01F_impro01_F000	neu	[2.5000, 2.5000, 2.5000]
TURN = re.compile(
    r"\[(?P<begin>[\d.]+) - (?P<end>[\d.]+)\]\t(?P<name>\S+)\t(?P<code>\w+)\t"
    r"\[(?P<valence>[\d.]+), (?P<activation>[\d.]+), (?P<dominance>[\d.]+)\]\s*"
)
TURN_NAME = re.compile(r"(?P<dialog>(?P<session>Ses\d\d)(?P<markers>[FM])_\w+)_(?P<gender>[FM])[^_]+")
# Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.
# Some lines have no name of a turn ("M: Yeah."): they belong to none.
LINE = re.compile(r"(?P<name>Ses\w+)\s*\[[^\]]*\]\s*:(?P<text>.*)")
# First and last frame, score and word (Sphinx): "	   33    71    -404131 EXCUSE(2)". A frame is 10 ms.
ALIGNED = re.compile(r"\s*(?P<first>\d{1,7})\s+(?P<last>\d{1,7})\s+-?\d+\s+(?P<word>\S+)\s*")
FRAME = 0.01
NOT_SPOKEN = ("<s>", "</s>", "<sil>")
VARIANT = re.compile(r"\(\d+\)$")  # of a word's pronunciation
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
SPLIT = "all"
DIMENSIONS = ("valence", "activation", "dominance")
TARGETS = {"vad": Target("regression", {name: [0.5, 5.5] for name in DIMENSIONS})}
DEFAULT_LABEL_SET: Literal[4, 6] = 4


def read(
    source: str | Path,
    label_set: Literal[4, 6] | None = None,
    test_session: int | None = None,
    val_session: int | None = None,
    markers_side: Literal["left", "right"] = "left",
    target: Literal["classification", "vad"] = "classification",
) -> ClipSource:
    """Read IEMOCAP.

    Args:
        source: the folder of Session1 ... Session5, or the one above it. Some sessions may be missing.
        label_set: number of classes, 4 or 6 (default: 4; with the target vad no classes, and turns of
            all labels).
        test_session: the session that becomes the split "test", while the others become "train"; default one
            split, "all".
        val_session: the session that becomes the split "val"; give test_session, too.
        markers_side: half of the picture in which the actor with the motion-capture markers sits.
        target: what is to be recognized: classification (classes), or vad (a regression: valence, activation
            and dominance).

    Returns:
        A clip per turn of the label set, or per turn if there is none; `missing` says so if its sound and
        picture are both missing. If no session has videos, clips have sound only. Metadata: session, speaker
        ("Ses01F"), gender, dialog, scenario ("improvised" or "scripted"), emotion (the corpus' code),
        valence, activation and dominance (means over the annotators, 0.5..5.5).

    Raises:
        ValueError: no such folder or option, or an unknown label; names the file.
    """
    if label_set is not None and label_set not in LABEL_SETS:
        raise ValueError(f"label_set {label_set!r}: IEMOCAP has {' and '.join(map(str, LABEL_SETS))}")
    if target not in (CLASSES.type, *TARGETS):
        raise ValueError(f"target {target!r}: must be {' or '.join((CLASSES.type, *TARGETS))}")
    if markers_side not in ("left", "right"):
        raise ValueError(f"markers_side {markers_side!r}: must be 'left' or 'right'")
    sessions = _sessions(Path(source))
    splits = _splits(sessions, test_session, val_session)
    if label_set is None and target == CLASSES.type:
        label_set = DEFAULT_LABEL_SET
    codes_of = LABEL_SETS[label_set] if label_set else {}
    label_of = {code: name for name, codes in codes_of.items() for code in codes}
    has_video = any((folder / "dialog" / "avi" / "DivX").is_dir() for folder in sessions.values())
    clips: list[Clip | BadSample] = []
    left_out: Counter[str] = Counter()
    texts: dict[str, str] = {}
    for session, folder in sessions.items():
        texts |= _transcriptions(folder)
        for annotation in _annotations(folder):
            for at, turn in _turns(annotation):
                if isinstance(turn, BadSample):
                    clips.append(turn)
                elif label_set and turn["code"] not in label_of:
                    left_out[turn["code"]] += 1
                else:
                    label = label_of.get(turn["code"])
                    clip = _clip(turn, folder, splits[session], label, has_video, markers_side, at)
                    clips.append(_with_text(clip, texts, folder) if isinstance(clip, Clip) else clip)
    return ClipSource(
        clips=clips,
        classes=list(codes_of),
        provenance={
            "corpus": "IEMOCAP",
            "source": str(source),
            "label_map": {code: label_of[code] for code in CODES if code in label_of},
            "left_out": dict(sorted(left_out.items())),
            "splits": {f"Ses{session:02}": split for session, split in splits.items()},
            "crop": f"the speaker's half; the actor with markers on the {markers_side}"
            if has_video
            else None,
            TRANSCRIPTS: "dialog/transcriptions",
        },
        remarks=[f"{source}: turns of other labels are left out: {_counts(left_out)}"] if left_out else [],
        missing={}
        if texts
        else {"text": f"{source}: no dialog/transcriptions/*.txt in its sessions; unpack the whole of them"},
        target=CLASSES if target == CLASSES.type else TARGETS[target],
        targets=TARGETS,
    )


def recognize(folder: Path) -> bool:
    """Whether a folder is IEMOCAP's."""
    return (folder / "Session1").is_dir() or any(folder.glob("*/Session1"))


def _counts(left_out: Counter[str]) -> str:
    return ", ".join(f"{code} {count}" for code, count in left_out.most_common())


def _sessions(root: Path) -> dict[int, Path]:
    for folder in (root, root / "IEMOCAP_full_release"):
        sessions = {n: folder / f"Session{n}" for n in range(1, 6) if (folder / f"Session{n}").is_dir()}
        if sessions:
            return sessions
    raise ValueError(
        f"{root}: no Session1 ... Session5 in it; give the folder IEMOCAP_full_release as it unpacks"
    )


def _splits(sessions: Mapping[int, Path], test: int | None, val: int | None) -> dict[int, str]:
    """The split of each session."""
    for name, session in (("test_session", test), ("val_session", val)):
        if session is not None and session not in sessions:
            raise ValueError(f"{name} {session}: no such session; there are {list(sessions)}")
    if val is not None and test in (None, val):
        raise ValueError(f"val_session {val}: needs another session for the test; give test_session, too")
    if test is None:
        return dict.fromkeys(sessions, SPLIT)
    return {n: "test" if n == test else "val" if n == val else "train" for n in sessions}


def _annotations(session: Path) -> list[Path]:
    folder = session / "dialog" / "EmoEvaluation"
    # macOS leaves "._Ses01F_impro01.txt" beside each file.
    files = sorted(path for path in folder.glob("*.txt") if not path.name.startswith("."))
    if not files:
        raise ValueError(f"{folder}: no annotations (*.txt) there; unpack the whole of {session.name}")
    return files


def _turns(annotation: Path) -> list[tuple[str, dict[str, str] | BadSample]]:
    """Place (file and line) and fields of each turn; the lines of single annotators are skipped."""
    turns: list[tuple[str, dict[str, str] | BadSample]] = []
    for number, line in enumerate(annotation.read_text(encoding="latin-1").splitlines(), start=1):
        if not line.startswith("["):
            continue
        at = f"{annotation}: line {number}"
        match = TURN.fullmatch(line)
        name = TURN_NAME.fullmatch(match["name"]) if match else None
        if match is None or name is None:
            cause = f"not a turn as IEMOCAP writes them: {line!r}"
            turns.append((at, BadSample(f"{annotation.stem}-line-{number}", cause, at)))
            continue
        if match["code"] not in CODES:
            raise ValueError(f"{at}: label {match['code']!r} is not one of IEMOCAP's: {', '.join(CODES)}")
        turns.append((at, match.groupdict() | name.groupdict()))
    return turns


def _clip(
    turn: Mapping[str, str],
    folder: Path,
    split: str,
    label: str | None,
    has_video: bool,
    markers_side: str,
    at: str,
) -> Clip | BadSample:
    name, dialog = turn["name"], turn["dialog"]
    audio = folder / "sentences" / "wav" / dialog / f"{name}.wav"
    video = folder / "dialog" / "avi" / "DivX" / f"{dialog}.avi"
    begin, end = float(turn["begin"]), float(turn["end"])
    # One of the two files is enough here: the extraction knows whether it needs the other.
    there = any(path.is_file() for path in ((audio, video) if has_video else (audio,)))
    if end <= begin:
        return BadSample(name, f"ends at {end} s, but begins at {begin} s", at)
    wears_markers = turn["gender"] == turn["markers"]
    meta: dict[str, Any] = {
        "session": turn["session"],
        "speaker": turn["session"] + turn["gender"],
        "gender": turn["gender"],
        "dialog": dialog,
        "scenario": "improvised" if "impro" in dialog else "scripted",
        "emotion": turn["code"],
        **{scale: float(turn[scale]) for scale in DIMENSIONS},
    }
    try:
        values_of(meta, TARGETS["vad"])
    except ValueError as error:
        return BadSample(name, str(error), at)
    return Clip(
        key=name,
        split=split,
        label=label,
        audio=audio if there else None,
        video=video if has_video and there else None,
        video_span=(begin, end) if has_video else None,
        crop=(LEFT if wears_markers == (markers_side == "left") else RIGHT) if has_video else None,
        meta=meta,
        source=at,
        missing={} if there else dict.fromkeys(("audio", "video"), f"no such file {audio}"),
    )


# --- Text ----------------------------------------------------------------------------------------


def _transcriptions(session: Path) -> dict[str, str]:
    """What is said in each turn of a session, by the turn's name."""
    files = sorted((session / "dialog" / "transcriptions").glob("*.txt"))
    lines = (
        LINE.fullmatch(line.strip())
        for path in files
        if not path.name.startswith(".")
        for line in decode_text(path.read_bytes()).splitlines()
    )
    return {line["name"]: line["text"].strip() for line in lines if line}


def _with_text(clip: Clip, texts: Mapping[str, str], session: Path) -> Clip:
    """The clip with its transcript."""
    try:
        text = transcript_of(checked_text(texts.get(clip.key)))
    except ValueError as error:
        return replace(clip, missing=clip.missing | {"text": str(error)})
    if text is None:
        return clip
    path = session / "sentences" / "ForcedAlignment" / clip.meta["dialog"] / f"{clip.key}.wdseg"
    return replace(clip, text=Transcript(text.words, _word_times(path, text.words)))


def _word_times(path: Path, words: tuple[str, ...]) -> tuple[tuple[float, float], ...]:
    """Begin and end of each word in seconds; none if the alignment is not there, or has other words."""
    if not path.is_file():
        return ()
    lines = [ALIGNED.fullmatch(line) for line in decode_text(path.read_bytes()).splitlines()]
    aligned = [line for line in lines if line and line["word"] not in NOT_SPOKEN]
    spoken = [_letters(VARIANT.sub("", line["word"])) for line in aligned]
    if spoken != [_letters(word) for word in words]:
        return ()
    return tuple((int(line["first"]) * FRAME, (int(line["last"]) + 1) * FRAME) for line in aligned)


def _letters(word: str) -> str:
    """A word by its letters and digits: alignments are in capitals, without punctuation."""
    return "".join(mark for mark in word.upper() if mark.isalnum())
