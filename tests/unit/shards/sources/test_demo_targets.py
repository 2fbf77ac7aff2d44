"""The demo corpora with values and with several labels at once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from awtpn.config.settings import DEMOS, DataConfig
from awtpn.run.data import stream_source
from awtpn.run.demos import demo_dataset
from shards import FeatureStream, Sample
from shards.sources import demo
from shards.sources.base import Source
from shards.sources.made_up import demo_targets

SIZES = {"train": 600, "val": 8, "test": 8}


def made(source: Source) -> list[Sample]:
    return [sample for sample in source.samples if isinstance(sample, Sample)]


def target_of(samples: list[Sample], target: str) -> np.ndarray:
    """The values [U, K], NaN where missing."""
    names = demo_targets.TARGETS[target].columns
    return np.array([[sample.meta[name] for name in names] for sample in samples], np.float64)


def mean_of_informative(samples: list[Sample], modality: str) -> np.ndarray:
    """The mean of each utterance's informative steps: [U, D]."""
    rows = []
    for sample in samples:
        values = sample.features[modality]
        assert values is not None
        rows.append(values[sample.meta[f"informative_{modality}"]].mean(0))
    return np.stack(rows)


def explained(rows: np.ndarray, values: np.ndarray) -> float:
    """The share of the variance of values [U] that a linear function of the rows [U, D] explains."""
    inputs = np.column_stack([rows, np.ones(len(rows))])
    residual = values - inputs @ np.linalg.lstsq(inputs, values, rcond=None)[0]
    return 1 - float(residual.var() / values.var())


@pytest.mark.parametrize("target", ["values", "labels"])
def test_informative_steps_carry_the_target_and_the_mean_over_time_hardly_does(target: str) -> None:
    samples = made(demo.samples(1, **SIZES, target=target))
    assert all(sample.label is None for sample in samples)
    values = target_of(samples, target)
    for modality in demo.DIMS:
        informative = mean_of_informative(samples, modality)
        everything = np.stack([sample.features[modality].mean(0) for sample in samples])
        for of_column in values.T:
            known = ~np.isnan(of_column)
            assert explained(informative[known], of_column[known]) > 0.8
            assert explained(everything[known], of_column[known]) < 0.5


def test_values_are_spread_over_their_range_and_some_are_missing() -> None:
    values = target_of(made(demo.samples(0, **SIZES, target="values")), "values")
    assert np.nanmin(values) >= -1
    assert np.nanmax(values) <= 1
    np.testing.assert_allclose(np.nanstd(values, 0), 1 / np.sqrt(3), atol=0.04)
    missing = np.isnan(values).mean(0)
    assert missing[0] == 0
    assert missing[1] == pytest.approx(demo_targets.MISSING_SHARE, abs=0.04)


def test_labels_are_several_at_once_with_intensities() -> None:
    values = target_of(made(demo.samples(0, **SIZES, target="labels")), "labels")
    assert set(np.unique(values)) == {0, 1, 2, 3}
    present = values > 0
    np.testing.assert_allclose(present.mean(0), demo_targets.LABEL_SHARE, atol=0.06)
    assert {0, 1, 2, 3} <= set(present.sum(1).tolist())


@pytest.mark.parametrize(
    ("target", "digest", "total"),
    [
        ("values", "101361370d42118a", {"audio": 23869.146, "video": 15136.56, "target": 14.431}),
        ("labels", "3f47e8d51c6ea3d9", {"audio": 21279.092, "video": 18453.951, "target": 58.0}),
    ],
)
def test_the_folder_names_these_utterances(target: str, digest: str, total: dict[str, float]) -> None:
    """Give `demo_targets.FOLDERS` another value together with the figures here."""
    assert demo_targets.FOLDERS[target] == f"demo-{target}-{digest[:10]}"
    samples = made(demo.samples(0, 8, 4, 4, target=target))
    found = {name: sum(float(np.abs(s.features[name]).sum()) for s in samples) for name in demo.DIMS}
    found["target"] = float(np.nansum(np.abs(target_of(samples, target))))
    assert found == pytest.approx(total, rel=1e-5)
    settings = demo.samples(target=target).provenance["settings"]
    assert hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16] == digest


def test_a_name_in_data_train_makes_its_corpus_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = demo.samples
    monkeypatch.setattr(demo, "samples", lambda target: samples(0, 16, 8, 8, target=target))
    urls = {name: demo_dataset(name, str(tmp_path)) for name in DEMOS if name != "demo-recordings"}
    assert [Path(url).name for url in urls.values()] == [demo.FOLDER, *demo_targets.FOLDERS.values()]
    monkeypatch.setattr(demo, "samples", None)
    for name, url in urls.items():
        source = stream_source(DataConfig(train=name, cache_dir=str(tmp_path)), "val")
        assert source is not None
        assert source["url"] == url
        stream = FeatureStream(url, split="val")
        assert stream.name == "the built-in demo"
        own = {"demo": "classification", "demo-values": "regression", "demo-labels": "multilabel"}[name]
        assert stream.target.type == own


def test_a_target_that_no_demo_has() -> None:
    with pytest.raises(ValueError, match="target 'sets': must be classification or values or labels"):
        demo.samples(target="sets")
