"""Read what wandb and MLflow wrote to the disk of a machine without a network."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from awtpn.tracking.trackers import RECORD

Points = dict[str, list[tuple[int, float]]]  # step and value, by tag


def offline(folder: Path) -> dict[str, str]:
    """Variables for services that reach no server; MLflow's store is `folder`/mlruns."""
    return {
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",  # the slim package has no database
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def run_ids(run_dir: Path) -> dict[str, str]:
    return json.loads((run_dir / RECORD).read_text())  # type: ignore[no-any-return]


def mlflow_folder(folder: Path, run_id: str) -> Path:
    [found] = (folder / "mlruns").glob(f"*/{run_id}")
    return found


def points_at_mlflow(folder: Path, run_id: str) -> Points:
    """All points of a run in the store of `offline(folder)`."""
    root = mlflow_folder(folder, run_id) / "metrics"
    found: Points = {}
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        rows = [line.split() for line in file.read_text().splitlines()]
        found[str(file.relative_to(root))] = [(int(step), float(value)) for _, value, step in rows]
    return found


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline run: protocol buffers in LevelDB's format of logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = file.read_bytes(), 7, b""  # after wandb's header
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # the rest of a block is empty
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_files(run_dir: Path, run_id: str) -> list[Path]:
    """A file for each start of a run, in their order."""
    return sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))


def points_at_wandb(run_dir: Path, run_id: str) -> tuple[Points, dict[str, float]]:
    """All points of an offline run, and its summary."""
    found: Points = {}
    summary: dict[str, float] = {}
    for file in wandb_files(run_dir, run_id):
        for record in wandb_records(file):
            for item in record.history.item:
                tag = item.key or "/".join(item.nested_key)
                if not tag.startswith("_"):
                    point = (int(record.history.step.num), float(json.loads(item.value_json)))
                    found.setdefault(tag, []).append(point)
            for item in record.summary.update:
                tag = item.key or "/".join(item.nested_key)
                if not tag.startswith("_"):
                    summary[tag] = float(json.loads(item.value_json))
    return found, summary


def wandb_settings(run_dir: Path, run_id: str) -> dict[str, Any]:
    """The configuration that an offline run has."""
    found: dict[str, Any] = {}
    for file in wandb_files(run_dir, run_id):
        for record in wandb_records(file):
            for item in (*record.run.config.update, *record.config.update):
                found[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return found
