"""Shared by the tests of cluster recipes: a run that is stopped before its end, a store for its folder."""

from __future__ import annotations

import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import swift as laboratory
from support import metrics, status

STEPS = 120


def training(corpus: str, run_dir: str | Path) -> dict[str, Any]:
    """A run long enough to be stopped before its end."""
    return {
        "data.train": corpus,
        "run.dir": run_dir,
        "model.shared_dim": 8,
        "train.epochs": 1000,
        "train.max_steps": STEPS,
        "train.global_batch_size": 16,
        "train.validate_every": 1000,
        "train.pictures": "never",
    }


def wait_for_checkpoint(run_dir: Path, process: subprocess.Popen[Any], log: Path) -> None:
    while not (run_dir / "checkpoints" / "latest").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)


def assert_whole(run_dir: Path) -> None:
    """The run is done, with every step once."""
    assert status(run_dir)["status"] == "done"
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, STEPS + 1))


def bucket(swift: laboratory.Swift) -> tuple[str, dict[str, str]]:
    """The URL of a run that does not exist yet, and the variables that a secret of a cluster would hold."""
    import s3fs

    s3fs.S3FileSystem(**laboratory.options(swift.endpoint)).mkdir(name := f"runs-{uuid.uuid4().hex[:8]}")
    secret = {"AWS_ACCESS_KEY_ID": laboratory.KEY, "AWS_SECRET_ACCESS_KEY": laboratory.SECRET}
    return f"s3://{name}/meld", secret | {"AWS_ENDPOINT_URL": swift.endpoint}


def folder_in_cache(cache: Path) -> Path:
    """Where a node with this cache works on the run of `bucket`; nowhere before it starts."""
    return next(cache.glob("*.run/meld"), cache / "none")
