"""The names of the demos: taken by every command that reads a dataset, and never by a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_support import awtpn, lines, refusal
from support import small_model

from awtpn.config.settings import DEMOS, DataConfig
from awtpn.model.task import Task
from awtpn.run.data import stream_source
from awtpn.run.demos import dataset_url, demo_name, hidden_by_demo, refuse_misspelled
from shards.sources import demo


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache with small demos."""
    samples, folder = demo.samples, tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "samples", lambda target: samples(0, 16, 8, 8, target=target))
        for name in DEMOS:
            dataset_url(name, str(folder))
        patch.setenv("AWTPN_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture
def here(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", DEMOS)
def test_a_name_is_a_folder_in_the_cache_with_any_split(name: str, cache: Path) -> None:
    folder = dataset_url(name)
    assert Path(folder).parent == cache
    assert dataset_url(f"{name}#val", str(cache)) == f"{folder}#val"
    assert demo_name(f"{name}#val") == demo_name(name) == name


@pytest.mark.parametrize(
    "url", ["./demo", "data/demo", "demo/", "s3://demo", "/demo#val", "demo.mp4", "meld", ""]
)
def test_other_names_stay_as_they_are(url: str, here: Path) -> None:
    assert dataset_url(url) == url
    assert demo_name(url) is None


def test_a_split_of_a_demo_trains(cache: Path) -> None:
    for role, own in (("train", "demo#train"), ("val", "demo#test"), ("test", None)):
        source = stream_source(DataConfig(train="demo#train", val="demo#test"), role)
        assert source is not None
        assert source["url"] == dataset_url(own or "demo")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("demos", "demo"), ("demo-lables#val", "demo-labels or demo-values"), ("demo_values", "demo-values")],
)
def test_a_misspelled_name_is_answered(given: str, meant: str, here: Path) -> None:
    name = given.partition("#")[0]
    told = f"{name}: no such folder; did you mean {meant}"
    with pytest.raises(ValueError, match=f"^{told}"):
        refuse_misspelled("demo", given)
    assert refusal("shards", "info", given).startswith(f"error: {told}")
    assert refusal("train", "--data.train", given, "--run.dir", "run").startswith(f"error: {told}")
    assert not (here / "run").exists()
    (here / name).mkdir()
    refuse_misspelled(given)
    assert dataset_url(given) == given


def test_every_command_that_reads_a_dataset_takes_the_names(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task("classification", list(demo.EMOTIONS))
    small_model(dims=demo.DIMS, task=task, dtype=torch.float32).save_pretrained("model")
    awtpn("predict", "model", "demo")
    assert [line["key"] for line in lines(capsys.readouterr().out)] == [f"test-{i:06}" for i in range(8)]
    awtpn("predict", "model", "demo#val", "--out", "answers.jsonl")
    assert lines((here / "answers.jsonl").read_text())[0]["key"] == "val-000000"
    capsys.readouterr()
    simulation = ["--nodes", "1", "--gpus-per-node", "1", "--global-batch", "8"]
    for words, told in (
        (["shards", "info", "demo-labels"], "split val: 8 utterances"),
        (["shards", "preview", "demo-values", "-n", "1"], "valence"),
        (["shards", "verify", "demo"], demo.FOLDER),
        (["shards", "simulate", "demo", *simulation], "16 utterances"),
        (["evaluate", "model", "--data", "demo#val"], "split val: 8 utterances"),
        (["doctor", "--data", "demo", "demo-values"], "no problems found"),
    ):
        awtpn(*words)
        assert told in capsys.readouterr().out, words
    assert f"{here / 'demo'}: no such folder" in refusal("shards", "index", "demo"), "it may write there"


def test_the_name_wins_over_a_folder_and_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "demo").mkdir()
    note = "note: demo is the built-in demo; write ./demo for what has this name here"
    assert hidden_by_demo("demo#val") == note
    assert hidden_by_demo("./demo") is hidden_by_demo("demo-values") is None
    awtpn("shards", "info", "demo")
    out, err = capsys.readouterr()
    assert demo.FOLDER in out
    assert err == note + "\n"
    assert "manifest.json: no such file" in refusal("shards", "info", "./demo")
