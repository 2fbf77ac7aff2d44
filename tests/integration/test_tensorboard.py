"""TensorBoard of a short real run: every page has our data, as its server tells and as a browser shows it."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import browser
import numpy as np
import pytest
import yaml
from support import arguments, run

RUN = "short/tensorboard"  # the run's name, by its folder
PAGES = ("timeseries", "scalars", "images", "distributions", "histograms", "text", "hparams", "projector")
STEPS = 70  # 63 to an epoch, so two validations


@pytest.fixture(scope="module")
def runs(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    settings = {
        "data.cache_dir": demo_cache,
        "run.dir": folder / "runs" / "short",
        "model.shared_dim": 16,
        "train.max_steps": STEPS,
        "train.pictures": "always",
    }
    command = [sys.executable, "launch/train.py", *arguments(settings)]
    code, log = run(command, folder / "log", OMP_NUM_THREADS="1")
    assert code == 0, log
    return folder / "runs"


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with browser.tensorboard(runs, runs.parent / "tensorboard.log") as address:
        yield address


def test_every_page_is_served_our_data(address: str, runs: Path) -> None:
    def fetch(path: str, **query: object) -> object:
        return browser.fetch(address, f"data/{path}?{urlencode({'run': RUN} | query)}")

    listing = browser.fetch(address, "data/plugins_listing")
    assert [page for page in PAGES if not listing[page]["enabled"]] == []
    groups = {tag.partition("/")[0] for tag in browser.fetch(address, "data/plugin/scalars/tags")[RUN]}
    of_steps, of_epochs = (
        {"loss", "optim", "data", "system", "grad_norm", "weight_norm"},
        {"epoch", "prototypes", "val", "val_f1"},
    )
    assert groups == {*of_steps, *of_epochs, "results"}

    points = fetch("plugin/scalars/scalars", tag="loss/total")
    assert [step for _, step, _ in points] == list(range(1, STEPS + 1))
    validations = fetch("plugin/scalars/scalars", tag="val/w-F1")
    assert [step for _, step, _ in validations] == [63, STEPS]
    assert [step for _, step, _ in fetch("plugin/scalars/scalars", tag="epoch/loss")] == [63, STEPS]
    for tag in ("system/utterances_per_s", "system/teraflop_per_s", "system/memory_gib"):
        assert all(value > 0 for _, _, value in fetch("plugin/scalars/scalars", tag=tag))
    for tag in ("data/wait_share", "data/padding_avoided"):
        assert all(0 <= value <= 1 for _, _, value in fetch("plugin/scalars/scalars", tag=tag))

    for tag in ("val/confusion", "val/weights_over_time", "prototypes/distances", "results/test_confusion"):
        last = fetch("plugin/images/images", tag=tag)[-1]
        picture = browser.fetch(address, f"data/plugin/images/individualImage?{last['query']}")
        assert picture.startswith(b"\x89PNG"), tag
        width, height = struct.unpack(">II", picture[16:24])
        assert width > 400, tag
        assert height > 400, tag
    histograms = fetch("plugin/histograms/histograms", tag="val/reliability_video")
    assert [step for _, step, _ in histograms] == [63, STEPS]
    config = fetch("plugin/text/text", tag="run/config/text_summary")[0]["text"]
    assert "shared_dim: 16" in config

    embeddings = fetch("plugin/projector/info")["embeddings"]
    assert {entry["tensorName"] for entry in embeddings} == {"last", "best_val", "best_test"}
    vectors = np.frombuffer(fetch("plugin/projector/tensor", name="best_test"), "<f4")
    assert vectors.reshape(408, 16).std() > 0, "400 utterances and 8 prototypes"
    rows = fetch("plugin/projector/metadata", name="best_test").decode().splitlines()
    assert rows[0].split("\t") == ["key", "label", "predicted", "kind", "shown_as"]
    kinds = [row.split("\t")[3] for row in rows[1:]]
    assert (kinds.count("utterance"), kinds.count("prototype")) == (400, 8)
    results = json.loads((runs / "short" / "results.json").read_text())
    right = sum(row.split("\t")[1] == row.split("\t")[2] for row in rows[1:401])
    assert right / 400 == results["test"]["w-ACC"]


def test_a_browser_shows_it(address: str, runs: Path, tmp_path: Path) -> None:
    if lacking := browser.missing():
        pytest.skip(lacking)
    config = yaml.safe_load((runs / "short" / "config.yaml").read_text())
    with browser.chromium() as driver:
        text = browser.visit(driver, address, "timeseries", ["/align", "val_f1"])
        for group in ("data", "loss", "optim", "prototypes", "results", "system", "val"):
            assert f"\n{group}\n" in text
        browser.visit(driver, address, "images&tagFilter=val/", ["val/confusion", "val/weights_over_time"])
        sizes = browser.until(
            lambda: min(browser.images(driver), default=None) != [0, 0] and browser.images(driver),
            lambda: f"pictures that never load: {browser.images(driver)}",
        )
        assert all(width > 400 for width, _ in sizes)
        browser.save(driver, tmp_path / "images.png")
        assert (tmp_path / "images.png").stat().st_size > 10_000
        for page in ("histograms", "distributions"):
            browser.visit(driver, address, page, ["val/reliability_audio"])
        browser.visit(driver, address, "text", ["run/config", "run/data", "run/environment"])
        hparams = browser.visit(driver, address, "hparams", ["model.awm", "results/test_w-F1"])
        assert all(f"train.{key}" in hparams for key in config["train"] if config["train"][key] is not None)
        browser.visit(driver, address, "projector", ["Total variance described", "408", "predicted"])
