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

from awtpn.cli import main
from awtpn.experiments import ablation, crossvalidation
from awtpn.experiments.comparison import compare
from awtpn.experiments.comparison.suite import Dataset, Model
from awtpn.experiments.crossvalidation import cross_validate
from awtpn.experiments.folds import Splits
from awtpn.experiments.home import Home, find_home
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
def steps() -> list[int]:
    """The steps that runs have done before each of their steps."""
    return []


@pytest.fixture
def url(
    no_accelerator: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, steps: list[int]
) -> Iterator[str]:
    """Of a folder in memory, where runs are trained in this process."""
    whole_step = trainer.train_step

    def train_all(jobs: Sequence[Job], place: Callable[[Job], Job], **options: Any) -> None:
        for job in map(place, jobs):
            trainer.main(job.arguments)

    def train_step(run: Any, *args: Any, **options: Any) -> Any:
        steps.append(run.position.step)
        return whole_step(run, *args, **options)

    for module in (ablation, compare, crossvalidation):
        monkeypatch.setattr(module, "train_all", train_all)
    monkeypatch.setattr(trainer, "train_step", train_step)
    monkeypatch.setattr("awtpn.run.remote.lease.TIMES", QUICK)
    monkeypatch.setenv("AWTPN_CACHE_DIR", str(tmp_path / "cache"))
    with memory_url() as url:
        yield url


def test_two_seeds_at_a_url_are_trained_once(corpus: str, url: str, tmp_path: Path, steps: list[int]) -> None:
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
    assert steps == [0, 1, 0, 1], "a run that was done was trained again"


def test_an_ablation_at_a_url_goes_on_on_another_machine(
    corpus: str, url: str, tmp_path: Path, steps: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its base is what a cross-validation has trained at `URL/base`."""
    training = arguments(SETTINGS | {"data.train": corpus})
    cross_validate(training, None, [0], f"{url}/base")
    shutil.rmtree(tmp_path / "cache")
    variants = ablation.read_variants(only=["AWM off"])
    results = ablation.ablate(training, variants, None, [0], url)
    assert steps == [0, 1, 0, 1], "the base was trained again"
    found = contents(files.open_remote(url))
    assert json.loads(found["ablations.json"])["base"] == results["base"]
    assert found["ablations.md"].startswith(b"| variant (1 runs: 1 seeds) |")
    assert {"base/seed-0/results.json", "AWM-off/seed-0/results.json"} <= found.keys()
    assert f"also in {url}/ablations.md and {url}/ablations.json" in capsys.readouterr().out


def test_a_comparison_at_a_url_goes_on_on_another_machine(
    url: str, tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data that it packs is there, too, and so is the linear baseline."""
    suite = tmp_path / "suite.yaml"
    options = {"utterances": 60}
    entry = {"format": "synthetic", "pack": options}
    suite.write_text(json.dumps({"datasets": {"made up": entry}, "models": {"LR": "linear", "awtpn": {}}}))
    words = ["compare-models", "--suite", str(suite), "--dir", url, "--seeds", "3", *arguments(SETTINGS)]
    main(words)
    found = contents(files.open_remote(url))
    models = json.loads(found["comparison.json"])["datasets"]["made up"]["models"]
    assert {"comparison.md", "comparison.html", "data/made-up/manifest.json"} <= found.keys()
    assert {"made-up/LR/baseline.json", "made-up/awtpn/seed-3/results.json"} <= found.keys()
    shutil.rmtree(tmp_path / "cache")
    fitted: list[Any] = []
    monkeypatch.setattr("awtpn.experiments.comparison.runs.evaluate_baseline", fitted.append)
    monkeypatch.setattr("awtpn.experiments.comparison.datasets.pack_dataset", fitted.append)
    main(words)
    again = json.loads(contents(files.open_remote(url))["comparison.json"])["datasets"]["made up"]["models"]
    assert {name: of["mean"] for name, of in again.items()} == {n: of["mean"] for n, of in models.items()}
    assert steps == [0, 1]
    assert fitted == []
    options["utterances"] = 61
    suite.write_text(json.dumps({"datasets": {"made up": entry}, "models": {"awtpn": {}}}))
    with pytest.raises(SystemExit, match=f"{url}/data/made-up holds data of other settings"):
        main(words)


def test_data_that_was_packed_at_the_url_is_read_with_its_options(tmp_path: Path) -> None:
    home = Home(tmp_path, "memory://bucket/compare", {"key": "a"})
    data = Dataset("mine", format="synthetic", place="mine")

    def words(*training: str) -> list[str]:
        cells = compare.make_cells({"mine": data}, {"m": Model("m", {})}, training, [0], tmp_path, None, home)
        return list(cells["mine"]["m"].training)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "url_of", lambda *_: home.at(tmp_path / "data" / "mine"))
        patch.setattr(compare, "make_splits", lambda *_: Splits(None, None, []))
        at = "--data.train=memory://bucket/compare/data/mine"
        assert words() == [at, '--data.storage_options={"key": "a"}']
        own = '--data.storage_options={"key": "b"}'
        assert words(own) == [own, at]


def test_a_job_works_in_its_local_folder(tmp_path: Path) -> None:
    home = find_home("s3://bucket/runs/cv/", {"key": "a"})
    folder = home.folder / "sweep" / "seed-1"
    job = home.place(Job(("--train.epochs=1", f"--run.dir={folder}"), folder))
    at = "s3://bucket/runs/cv/sweep/seed-1"
    assert job == Job(("--train.epochs=1", f"--run.dir={at}", f"--run.local_dir={folder}"), folder)
    local = find_home(tmp_path, {})
    assert local.place(Job(("--x=1",), tmp_path / "a")) == Job(("--x=1",), tmp_path / "a")
    assert local.send([tmp_path / "a"]) == [str(tmp_path / "a")]
    assert local.read(tmp_path / "a") is None
    local.fetch(tmp_path / "a")
    assert "key" not in repr(home)
