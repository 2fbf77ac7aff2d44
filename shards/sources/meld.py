"""MELD: utterances of the series Friends, seven emotions, official splits.

The corpus (Poria et al., 2019) is linked from https://affective-meld.github.io (MELD.Raw.tar.gz, which holds
train.tar.gz, dev.tar.gz and test.tar.gz). Unpacked:

    MELD.Raw/
      train/train_sent_emo.csv            train/train_splits/dia0_utt0.mp4 ...
      dev_sent_emo.csv                    dev/dev_splits_complete/dia0_utt0.mp4 ...
      test_sent_emo.csv                   test/output_repeated_splits_test/dia0_utt0.mp4 ...

Tables and folders may be in `train`, `dev` and `test`, or all in one folder; the folder above MELD.Raw can be
given, too. The same names recur in all splits, so a key begins with its split: `train_dia0_utt0`. The folder
of the test split also has clips `final_videos_testdia..._utt....mp4` that no table names. They are not used,
as its authors advise (declare-lab/MELD, issue 22), though some users report better cuts among them.

The text of an utterance is the table's column Utterance. Text alone needs the tables only:

    awtpn extract MELD.Raw data/meld-text --format meld --audio none --video none --text chargrams

Classes are the corpus' seven emotions. Known flaws are listed as bad: a clip that a table names and the
folder lacks (`dev/dia110_utt7`), and, by the extraction, one that cannot be decoded (`train/dia125_utt3`).
From the archive to a trained model:

    awtpn extract MELD.Raw data/meld --format meld
    awtpn shards info data/meld
    awtpn train --config configs/meld.yaml --data.train data/meld
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.format.schema import BadSample
from shards.sources.base import TRANSCRIPTS, Clip, ClipSource
from shards.sources.reading.transcripts import checked_text, decode_text, transcript_of

EMOTIONS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
# Name of the split in the dataset, and its folder in the corpus.
SPLITS = {
    "train": ("train", "train_splits"),
    "dev": ("val", "dev_splits_complete"),
    "test": ("test", "output_repeated_splits_test"),
}
COLUMNS = ("Dialogue_ID", "Utterance_ID", "Emotion", "Sentiment", "Speaker", "Season", "Episode")
TEXT = "Utterance"  # tables of others may lack it
MEDIA = ("audio", "video")


def read(source: str | Path) -> ClipSource:
    """Read MELD.

    Args:
        source: the folder MELD.Raw, or one with the same content. A split may be missing, table and folder.

    Returns:
        A clip per row of the tables; `missing` names the file that it lacks, and folders that are not there.
        Metadata: dialogue and utterance (numbers within the split), speaker, sentiment, season, episode.

    Raises:
        ValueError: no such folder, a folder without its table, a column missing, or a label that is not one
            of MELD's; names the file and the row.
    """
    root = Path(source)
    clips: list[Clip | BadSample] = []
    remarks = []
    missing: dict[str, str] = {}
    for split in SPLITS:
        found = _find(root, split)
        if found is not None:
            table, folder = found
            rows = _rows(table)
            of_split = [_clip(row, split, folder or root / SPLITS[split][1], at) for at, row in rows]
            clips += of_split
            if rows and TEXT not in rows[0][1]:
                remarks.append(f"{table}: no column {TEXT!r}; its utterances have no text")
            if folder is None:
                missing = missing or dict.fromkeys(
                    MEDIA, _no_counterpart(table, SPLITS[split][1], root, split)
                )
                continue
            named = {clip.video.name for clip in of_split if clip.video}
            if unused := sorted({path.name for path in folder.glob("*.mp4")} - named):
                message = (
                    f"{len(unused)} clips that {table.name} does not name are not used, {unused[0]} first"
                )
                remarks.append(f"{folder}: {message}")
    if not clips:
        raise ValueError(f"{root}: no train_sent_emo.csv in it; give the folder MELD.Raw as it unpacks")
    return ClipSource(
        clips=clips,
        classes=list(EMOTIONS),
        provenance={
            "corpus": "MELD",
            "source": str(source),
            "label_map": {name: name for name in EMOTIONS},
            "splits": {name: split for name, (split, _) in SPLITS.items()},
            TRANSCRIPTS: f"column {TEXT}",
        },
        remarks=remarks,
        missing=missing,
    )


def recognize(folder: Path) -> bool:
    """Whether a folder is MELD's."""
    return any(folder.glob("*_sent_emo.csv")) or any(folder.glob("*/*_sent_emo.csv"))


def _find(root: Path, split: str) -> tuple[Path, Path | None] | None:
    """Table and folder of a split, wherever they are; None if neither exists."""
    places = [base / within for base in (root, root / "MELD.Raw") for within in ("", split)]
    table_name, folder_name = f"{split}_sent_emo.csv", SPLITS[split][1]
    table = next((path / table_name for path in places if (path / table_name).is_file()), None)
    folder = next((path / folder_name for path in places if (path / folder_name).is_dir()), None)
    if table is None:
        if folder is None:
            return None
        raise ValueError(_no_counterpart(folder, table_name, root, split))
    return table, folder


def _no_counterpart(there: Path, lacking: str, root: Path, split: str) -> str:
    return f"{there}: its counterpart {lacking} is neither in {root} nor in {root / split}"


def _rows(table: Path) -> list[tuple[str, dict[str, str]]]:
    """Place of each row, and the row."""
    reader = csv.DictReader(io.StringIO(decode_text(table.read_bytes()), newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(
            f"{table}: up to line {reader.line_num}: not CSV ({error}); is a quote not closed?"
        ) from None
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
    if missing:
        raise ValueError(f"{table}: column {missing[0]!r} is missing; it has {reader.fieldnames}")
    # Spreadsheets leave rows without any content.
    return [(f"{table}: row {number}", row) for number, row in enumerate(rows, start=1) if any(row.values())]


def _clip(row: Mapping[str, Any], split: str, folder: Path, at: str) -> Clip:
    if None in row:
        # Not quoted: its fields are in the wrong columns, so any may be what is said.
        raise ValueError(
            f"{at}: has more fields than the header; put an utterance that contains a comma into quotes"
        )
    emotion = str(row["Emotion"]).strip().lower()
    if emotion not in EMOTIONS:
        raise ValueError(f"{at}: Emotion {row['Emotion']!r} is not one of MELD's: {', '.join(EMOTIONS)}")
    try:
        numbers = {name: int(row[name]) for name in ("Dialogue_ID", "Utterance_ID", "Season", "Episode")}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{at}: {error}; Dialogue_ID, Utterance_ID, Season and Episode are numbers"
        ) from None
    name = f"dia{numbers['Dialogue_ID']}_utt{numbers['Utterance_ID']}"
    key = f"{SPLITS[split][0]}_{name}"
    path = folder / f"{name}.mp4"
    there = path.is_file()
    missing = {} if there else dict.fromkeys(MEDIA, f"no such file {path}")
    try:
        text = transcript_of(checked_text(row.get(TEXT)))
    except ValueError as error:
        text, missing["text"] = None, str(error)
    meta = {
        "dialogue": numbers["Dialogue_ID"],
        "utterance": numbers["Utterance_ID"],
        "speaker": str(row["Speaker"]).strip(),
        "sentiment": str(row["Sentiment"]).strip().lower(),
        "season": numbers["Season"],
        "episode": numbers["Episode"],
    }
    return Clip(
        key=key,
        split=SPLITS[split][0],
        label=emotion,
        audio=path if there else None,
        video=path if there else None,
        meta=meta,
        source=at,
        missing=missing,
        text=text,
    )
