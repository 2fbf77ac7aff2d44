"""An experiment whose folder is a URL goes on on another machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from remote_runs_support import QUICK, contents, memory_url
from support import arguments

from awtpn.experiments import crossvalidation
from awtpn.experiments.crossvalidation import cross_validate
from awtpn.experiments.home import find_home
from awtpn.experiments.runner import Job
from awtpn.run.remote import files
from awtpn.training import trainer

SETTINGS = {
    "model.shared_dim": 8,
    "train.global_batch_size": 16,
    "train.max_steps": 2,
    "train.pictures": "never",
    "train.threads": 1,
}


@pytest.fixture
def url(no_accelerator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Of a folder in memory, where runs are trained in this process."""
    steps: list[int] = []
    whole_step = trainer.train_step

    def train_all(jobs: Sequence[Job], place: Callable[[Job], Job], **options: Any) -> None:
        for job in map(place, jobs):
            trainer.main(job.arguments)

    def train_step(run: Any, *args: Any, **options: Any) -> Any:
        steps.append(run.position.step)
        return whole_step(run, *args, **options)

    monkeypatch.setattr(crossvalidation, "train_all", train_all)
    monkeypatch.setattr(trainer, "train_step", train_step)
    monkeypatch.setattr("awtpn.run.remote.lease.TIMES", QUICK)
    monkeypatch.setenv("AWTPN_CACHE_DIR", str(tmp_path / "cache"))
    with memory_url() as url:
        yield url
    assert steps == [0, 1, 0, 1], "a run that was done was trained again"


def test_two_seeds_at_a_url_are_trained_once(corpus: str, url: str, tmp_path: Path) -> None:
    training = arguments(SETTINGS | {"data.train": corpus})
    first = cross_validate(training, None, [0, 1], url)
    found = contents(files.open_remote(url))
    assert json.loads(found["cross_validation.json"])["mean"] == first["mean"]
    assert found["report.html"].startswith(b"<!")
    assert {name.partition("/")[0] for name in found if "/" in name} == {"seed-0", "seed-1"}
    assert "seed-0/results.json" in found
    # Another machine has an empty cache.
    shutil.rmtree(tmp_path / "cache")
    assert cross_validate(training, None, [0, 1], url) == first


def test_a_job_works_in_its_local_folder(tmp_path: Path) -> None:
    home = find_home("s3://bucket/runs/cv/", {"key": "a"})
    folder = home.folder / "sweep" / "seed-1"
    job = home.place(Job(("--train.epochs=1", f"--run.dir={folder}"), folder))
    at = "s3://bucket/runs/cv/sweep/seed-1"
    assert job == Job(("--train.epochs=1", f"--run.dir={at}", f"--run.local_dir={folder}"), folder)
    local = find_home(tmp_path, {})
    assert local.place(Job(("--x=1",), tmp_path / "a")) == Job(("--x=1",), tmp_path / "a")
    assert local.send([tmp_path / "a"]) == [str(tmp_path / "a")]
    assert "key" not in repr(home)
