"""Records of finished shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from corpora_support import (
    put_bytes,
)

from shards.extraction.shard_records import read_records
from shards.packing.output_folder import open_output_store


@pytest.mark.parametrize(
    "record",
    [
        [],
        {},
        {"part": {"moments": [], "entry": {}}, "skipped": []},
        {"part": {"moments": {"audio": [1, [2.0]]}, "entry": {}}, "skipped": []},
        {"part": {"moments": {}, "entry": {}}, "skipped": []},
        {"part": None, "skipped": 3},
        {"part": None, "skipped": [], "constant": []},
    ],
)
def test_a_file_that_is_not_a_record_is_refused_by_name(tmp_path: Path, record: Any) -> None:
    put_bytes(tmp_path / "d" / "train-000000.part.json", json.dumps(record).encode())
    message = r"/train-000000\.part\.json: not the record of a shard \([^\n;]+\); remove it$"
    with pytest.raises(ValueError, match=message):
        read_records(open_output_store(str(tmp_path / "d"), None), ["train-000000"])
