"""Extraction of recordings with targets: the values of a clip's metadata, and clips that have none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extraction_support import Counting, Killed, extracted, files, over_ranks, skipped

from shards import FeatureStream
from shards.extraction.extract import extract
from shards.extraction.shard_jobs import extraction_id
from shards.extraction.shard_records import read_records
from shards.format.targets import Target
from shards.packing.output_folder import open_output_store
from shards.sources.base import Clip, ClipSource

AFFECT = Target("regression", {"valence": [1.0, 5.0], "activation": None}, missing=True)
JOY = Target("multilabel", {"joy": [0.0, 3.0]})


def values(i: int) -> dict[str, Any]:
    return {"valence": 1 + i % 5, "activation": None if i % 3 else i / 2, "joy": float(i % 4)}


def unlabeled(tones: ClipSource, changes: dict[int, dict[str, Any]] | None = None) -> ClipSource:
    clips = [
        replace(clip, label=None, meta=clip.meta | values(i) | (changes or {}).get(i, {}))
        for i, clip in enumerate(tones.clips)
        if isinstance(clip, Clip)
    ]
    return replace(tones, clips=clips, classes=[], target=AFFECT, targets={"joy": JOY})


def test_clips_with_values_and_without_classes(tmp_path: Path, tones: ClipSource) -> None:
    source = unlabeled(tones)
    manifest = extracted(source, tmp_path / "d", audio=Counting())
    assert (manifest.classes, manifest.target, manifest.targets) == ([], AFFECT, {"joy": JOY})
    number = {clip.key: i for i, clip in enumerate(source.clips)}
    for split in manifest.splits:
        for batch in FeatureStream(str(tmp_path / "d"), split, global_batch_size=4).epoch(0):
            found = [[values(number[key])[name] for name in AFFECT.columns] for key in batch.key]
            np.testing.assert_array_equal(
                batch.target, [[math.nan if value is None else value for value in row] for row in found]
            )
    made = over_ranks(
        2,
        lambda **ranks: extract(
            source, str(tmp_path / "two"), audio=Counting(), clips_per_shard=3, progress=False, **ranks
        ),
    )
    assert replace(made[0], provenance={}) == replace(manifest, provenance={})
    assert files(tmp_path / "two") == files(tmp_path / "d")


def test_clips_with_bad_values_are_named_before_any_is_decoded(tmp_path: Path, tones: ClipSource) -> None:
    source = unlabeled(tones, {2: {"valence": 9}, 5: {"valence": None, "activation": None}})
    encoder = Counting()
    with pytest.raises(ValueError, match=r"its 'valence' is 9, outside of 1 to 5"):
        extracted(source, tmp_path / "d", audio=encoder, on_bad="refuse")
    assert encoder.clips == 0
    manifest = extracted(source, tmp_path / "d", audio=encoder)
    assert (manifest.skipped, encoder.clips) == (2, len(source.clips) - 2)
    causes = list(skipped(tmp_path / "d").values())
    assert "its 'valence' is 9, outside of 1 to 5" in causes[0]
    assert "has no target: no value of 'valence' nor 'activation'" in causes[1]


def test_an_extraction_is_another_one_with_other_targets(tones: ClipSource) -> None:
    def id_of(source: ClipSource) -> str:
        return extraction_id(source, {"audio": Counting()}, {"dtype": "float16"})  # type: ignore[dict-item]

    source = unlabeled(tones)
    others = [
        source,
        replace(source, target=replace(AFFECT, missing=False)),
        replace(source, target=replace(AFFECT, columns={"valence": [0.0, 5.0]})),
    ]
    assert len({id_of(other) for other in others}) == len(others)
    # Further targets name columns that the shards have anyway.
    for same in (unlabeled(tones), replace(source, targets={}), replace(source, targets={"happiness": JOY})):
        assert id_of(source) == id_of(same)


def test_shards_of_an_early_extraction_make_no_column_with_missing_values(
    tmp_path: Path, tones: ClipSource
) -> None:
    """Their indexes have no array of it: all their values would seem to be missing."""
    clips = [
        replace(clip, meta=clip.meta | ({"gain": i} if i % 3 else {})) for i, clip in enumerate(tones.clips)
    ]
    source = replace(tones, clips=clips)
    whole = extracted(source, tmp_path / "whole", audio=Counting())
    assert whole.columns["gain"] == "optional float"
    with pytest.raises(Killed):
        extracted(source, tmp_path / "d", audio=Counting(kill_after=7))
    store = open_output_store(str(tmp_path / "d"), None)
    [path] = (tmp_path / "d").glob("train-000001.part.json")
    record = json.loads(path.read_text())
    assert record.pop("schema_version") == 2
    path.write_text(json.dumps(record))
    early, now = read_records(store, ["train-000001", "train-000000"])
    assert early.shard is not None
    assert now.shard is not None
    assert early.shard.stats.kinds["gain"] == (2, {"int", None})
    assert now.shard.stats.kinds["gain"] == (2, {"int"})
    manifest = extracted(source, tmp_path / "d", audio=Counting())
    assert "gain" not in manifest.columns
    assert replace(manifest, columns={}, provenance={}) == replace(whole, columns={}, provenance={})
