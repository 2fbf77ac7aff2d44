"""Int8 features: how ranges are chosen, what is clipped and refused, and who reads the values again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from shards_support import CLASSES, changed, corpus, pack
from support import REPO

import shards
from awtpn.cli import main
from shards import FeatureStream, Sample
from shards.format.manifest import parse_manifest
from shards.format.recording import Recording
from shards.format.schema import SCHEMA_VERSION, Manifest
from shards.format.statistics import statistics_of
from shards.packing.quantization import (
    TOLERANCE,
    StepSample,
    choose_quantization,
    quantize,
    relative_error,
)
from shards.sources.dataset import read
from shards.tools.info import info, preview
from shards.tools.verify import verify

N = 20_000


def made(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What int8 makes of `values` [N]: its values, the errors, clipped values, and the relative error."""
    x = values.astype(np.float32).reshape(len(values), -1)
    sample = StepSample(x.shape[1])
    for i in range(0, len(x), 777):
        sample.add(x[i : i + 777])
    quantization = choose_quantization(sample)
    q, error = quantize(x, quantization)
    stored = quantization.dequantize(q)
    assert q.dtype == np.int8
    assert q.min() >= -127
    return stored[:, 0], (stored - x)[:, 0], error.clipped, relative_error(error, statistics_of(stored))


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


# A distribution, and the largest error that is expected of 255 steps.
DISTRIBUTIONS: dict[str, tuple[Callable[[], np.ndarray], float]] = {
    "uniform": (lambda: rng().random(N), 0.004),
    "normal": (lambda: rng().normal(size=N), 0.012),
    "not centered": (lambda: rng().normal(-18.4, 2, N), 0.012),
    "far from 0": (lambda: rng().normal(1e4, 1, N), 0.012),
    "after a ReLU": (lambda: np.maximum(rng().normal(size=N), 0), 0.008),
    "laplace": (lambda: rng().laplace(size=N), 0.02),
    "lognormal": (lambda: rng().lognormal(size=N), 0.03),
    "one-hot": (lambda: (rng().random(N) < 0.01) * 1.0, 1e-6),
    "small": (lambda: rng().normal(0, 1e-20, N), 0.012),
    "huge": (lambda: rng().normal(0, 1e30, N), 0.012),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_error_is_a_small_share_of_the_deviation(name: str) -> None:
    draw, most = DISTRIBUTIONS[name]
    values = draw()
    _, off, clipped, error = made(values)
    assert error[0] <= most
    assert clipped[0] <= 1e-3 * N
    if not clipped[0]:
        assert np.sqrt(np.mean(off.astype(np.float64) ** 2)) / values.std() <= most


@pytest.mark.parametrize("outlier", [30.0, 1e6, -1e30])
def test_one_huge_value_does_not_ruin_a_dimension(outlier: float) -> None:
    """By the largest value alone, the steps would be wider than all the other values are."""
    values = rng().normal(size=N)
    values[77] = outlier
    _, off, clipped, error = made(values)
    assert error[0] <= 0.02
    assert 1 <= clipped[0] <= 20
    others = np.delete(off, 77).astype(np.float64)
    assert np.sqrt(np.mean(others**2)) <= 0.03


def test_values_that_are_far_out_but_not_rare_are_kept() -> None:
    values = np.where(rng().random(N) < 0.02, 50.0, rng().normal(size=N))
    _, off, clipped, _ = made(values)
    assert clipped[0] == 0
    assert np.abs(off).max() < 0.15


def test_a_constant_is_exact() -> None:
    stored, off, clipped, error = made(np.full(N, 0.1))
    assert stored[0] == np.float32(0.1)
    assert not off.any()
    assert clipped[0] == error[0] == 0


def test_the_sample_of_steps_is_bounded_even_and_repeatable() -> None:
    values = np.arange(400_000, dtype=np.float32).reshape(-1, 1)
    found = []
    for _ in range(2):
        sample = StepSample(1)
        for part in np.array_split(values, 99):
            sample.add(part)
            assert sample._held <= 2 * sample.most
        found.append(sample.steps())
    np.testing.assert_array_equal(*found)
    assert len(found[0]) == len(np.unique(found[0])) == sample.most
    assert abs(found[0].mean() / values.mean() - 1) < 0.02
    assert (sample.low[0], sample.high[0]) == (0, 399_999)


# --- Packing -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], Path]:
    samples, folder = corpus(), tmp_path_factory.mktemp("int8") / "d"
    pack(samples, folder, dtype="int8")
    return samples, folder


def manifest_in(folder: Path) -> Manifest:
    return parse_manifest((folder / "manifest.json").read_text(), str(folder))


def values_by_key(url: str, split: str) -> dict[str, dict[str, np.ndarray]]:
    found = {}
    for batch in FeatureStream(url, split=split, global_batch_size=8).epoch(0):
        parts = {
            name: ragged.dequantized().split(ragged.host_lengths) for name, ragged in batch.features.items()
        }
        for i, key in enumerate(batch.key):
            found[key] = {name: of[i].numpy().copy() for name, of in parts.items()}
    return found


def test_the_stream_gives_int8_and_what_it_stands_for(packed: tuple[list[Sample], Path]) -> None:
    samples, folder = packed
    manifest = manifest_in(folder)
    scales = {name: m.quantization.arrays[0] for name, m in manifest.modalities.items() if m.quantization}
    assert scales.keys() == {"audio", "video"}
    batch = next(FeatureStream(str(folder), global_batch_size=4).epoch(0))
    for half in batch.split(2):
        assert half.features["audio"].values.dtype == torch.int8
        assert half.features["audio"].quantization is batch.features["audio"].quantization
    assert batch.take([1]).features["video"].quantization is not None
    found = values_by_key(str(folder), "train") | values_by_key(str(folder), "test")
    for sample in samples:
        for name, values in sample.features.items():
            if values is None:
                assert len(found[sample.key][name]) == 0
            elif sample.split == "train":  # those of "test" may be out of its range
                off = np.abs(found[sample.key][name] - values)
                assert (off <= 0.5001 * scales[name]).all()


def test_the_statistics_are_those_of_the_values(packed: tuple[list[Sample], Path]) -> None:
    _, folder = packed
    values = np.concatenate([of["audio"] for of in values_by_key(str(folder), "train").values()])
    statistics = manifest_in(folder).splits["train"].moments["audio"]
    np.testing.assert_allclose(statistics.mean, values.mean(0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, values.std(0, dtype=np.float64), rtol=1e-6)
    whole, part = (FeatureStream(str(folder), select=select) for select in (None, {"fold": [0, 1, 2]}))
    for name, sums in whole.statistics().items():
        np.testing.assert_allclose(part.statistics()[name].sum, sums.sum, rtol=1e-5)


def test_tools_know_it(packed: tuple[list[Sample], Path], capsys: pytest.CaptureFixture[str]) -> None:
    samples, folder = packed
    assert verify(str(folder)).faults == []
    assert info(str(folder)).manifest.modalities["audio"].step_bytes == 5
    [first] = preview(str(folder), 1)
    np.testing.assert_allclose(first.features["audio"], samples[0].features["audio"], atol=0.06)
    main(["shards", "info", str(folder)])
    assert "int8" in capsys.readouterr().out
    main(["shards", "simulate", str(folder), "--nodes", "1", "--gpus-per-node", "2", "--global-batch", "4"])


def test_wrong_scales_are_found(packed: tuple[list[Sample], Path], tmp_path: Path) -> None:
    samples, _ = packed
    pack(samples, tmp_path / "d", dtype="int8")

    def change(record: dict[str, Any]) -> None:
        record["modalities"]["audio"]["quantization"]["scale"][2] *= 1.5

    [fault] = verify(changed(tmp_path / "d", change)).faults[:1]
    assert "moments.audio: " in fault.cause


FORGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "none": (lambda q: q.pop("scale"), "field 'scale' is missing"),
    "few": (lambda q: q["offset"].pop(), "offset: 4 numbers for 5 features"),
    "nan": (lambda q: q["scale"].__setitem__(1, float("nan")), "NaN|nan"),
    "negative": (lambda q: q["scale"].__setitem__(1, -1.0), r"scale\[1\] is -1.0"),
    "too large": (lambda q: q["offset"].__setitem__(0, 1e39), r"offset\[0\] is 1e\+39"),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_scales_are_refused(packed: tuple[list[Sample], Path], name: str) -> None:
    record = json.loads((packed[1] / "manifest.json").read_text())
    change, message = FORGED[name]
    change(record["modalities"]["audio"]["quantization"])
    with pytest.raises(ValueError, match=message):
        parse_manifest(json.dumps(record), "m")


def test_an_early_version_cannot_mistake_it(packed: tuple[list[Sample], Path]) -> None:
    """It refuses the version, and says to upgrade; float datasets keep the version that they had."""
    _, folder = packed
    record = json.loads((folder / "manifest.json").read_text())
    assert record["schema_version"] == SCHEMA_VERSION == 4
    record["schema_version"] = 2
    with pytest.raises(ValueError, match=r"dtype one of \('float16', 'float32'\)"):
        parse_manifest(json.dumps(record), "m")
    del record["modalities"]["audio"]["quantization"]
    with pytest.raises(ValueError, match="int8 features, and no others, have a quantization"):
        parse_manifest(json.dumps(record | {"schema_version": 4}), "m")


def test_float_manifests_are_as_before(tmp_path: Path) -> None:
    pack(corpus(), tmp_path / "d")
    record = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert record["schema_version"] == 2
    assert record["modalities"]["audio"] == {"dim": 5, "dtype": "float16"}


def test_webdataset_and_the_documented_line_give_the_values(packed: tuple[list[Sample], Path]) -> None:
    """The lines of launch/README.md, run on this dataset."""
    _, folder = packed
    text = (REPO / "launch" / "README.md").read_text()
    [code] = [
        block for block in text.split("```python\n")[1:] if '"quantization"' in block.partition("```")[0]
    ]
    code = code.partition("```")[0].replace("data/mine-int8/all", f"{folder}/train")
    code = code.replace("data/mine-int8", str(folder))
    scope: dict[str, Any] = {}
    exec(code, scope)
    found = values_by_key(str(folder), "train")
    assert scope["sample"]["audio.npy"].dtype == np.int8
    np.testing.assert_array_equal(scope["audio"], found[scope["sample"]["__key__"]]["audio"])
    assert scope["audio"].dtype == np.float32
    assert webdataset is scope["webdataset"]


# --- Splits, and what is refused -----------------------------------------------------------------


def steps(values: np.ndarray, split: str, i: int, **more: Any) -> Sample:
    return Sample(f"{split}-{i}", split, CLASSES[i % 3], {"audio": values, **more})


def test_other_splits_are_clipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The range is that of the training split, wherever it comes in the source."""
    draws = rng()
    samples = [steps(draws.uniform(-5, 5, (50, 2)) + np.array([0, 10]), "test", i) for i in range(4)]
    samples += [steps(draws.uniform(-1, 1, (50, 2)), "train", i) for i in range(20)]
    with caplog.at_level(logging.WARNING):
        manifest = shards.pack(samples, str(tmp_path / "d"), classes=CLASSES, dtype="int8", progress=False)
    found = manifest.provenance["quantized"]
    outside = sum(int((np.abs(sample.features["audio"]) > 1.002).sum()) for sample in samples[:4])
    assert found["scales_of"] == {"audio": ["train"]}
    assert found["clipped"]["train"] == {"audio": 0}
    assert abs(found["clipped"]["test"]["audio"] - outside) <= 4
    assert "split test: " in caplog.text
    assert "of the values of audio[1] are clipped: outside of the range of split train" in caplog.text
    assert verify(str(tmp_path / "d")).faults == []
    test = np.concatenate([of["audio"] for of in values_by_key(str(tmp_path / "d"), "test").values()])
    assert np.abs(test).max() <= 1.001


def test_a_dimension_that_never_changes_in_training_stays_constant(tmp_path: Path) -> None:
    samples = [steps(np.c_[np.full(9, 3.0), np.arange(9)], "train", i) for i in range(4)]
    samples += [steps(np.c_[np.arange(9), np.arange(9)], "test", 9)]
    manifest = shards.pack(samples, str(tmp_path / "d"), classes=CLASSES, dtype="int8", progress=False)
    assert manifest.provenance["quantized"]["clipped"]["test"] == {"audio": 8}
    quantization = manifest.modalities["audio"].quantization
    assert quantization is not None
    assert (quantization.scale[0], quantization.offset[0]) == (0, 3)
    found = values_by_key(str(tmp_path / "d"), "test")["test-9"]["audio"]
    np.testing.assert_array_equal(found[:, 0], 3)


def ruined() -> list[Sample]:
    """Dimensions 1 and 3 span many orders of magnitude: no even steps suit them."""
    draws = rng()
    made = []
    for i in range(40):
        x = draws.normal(size=(500, 5))
        x[:, 1] = draws.standard_cauchy(500)
        x[:, 3] = draws.standard_cauchy(500) ** 3
        made.append(steps(x, "train", i, video=draws.normal(size=(2, 3))))
    return made


def test_what_int8_would_ruin_is_refused_by_name(tmp_path: Path) -> None:
    message = (
        r"these dimensions are off by more than 5 % of their standard deviation: audio\[(1|3)\] [\d.]+ %, "
        r"audio\[(1|3)\] [\d.]+ %; pack with dtype='float16' \(--dtype float16\), or scale the feature"
    )
    with pytest.raises(ValueError, match=message):
        shards.pack(ruined(), str(tmp_path / "d"), classes=CLASSES, dtype="int8", progress=False)
    assert not list((tmp_path / "d").iterdir())
    assert TOLERANCE == 0.05


def test_a_refusal_leaves_the_dataset_that_was_to_be_replaced(tmp_path: Path) -> None:
    pack(corpus(), tmp_path / "d")
    before = (tmp_path / "d" / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="off by more than"):
        pack(ruined(), tmp_path / "d", dtype="int8", overwrite=True)
    assert (tmp_path / "d" / "manifest.json").read_bytes() == before
    assert verify(str(tmp_path / "d")).faults == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_bad_values_are_refused_or_skipped_as_in_floats(tmp_path: Path, value: float) -> None:
    samples = corpus()
    bad = replace(samples[3], features={"audio": np.full((2, 5), value), "video": None})
    samples[3] = bad
    with pytest.raises(ValueError, match="utterance 'train-3': audio"):
        pack(samples, tmp_path / "d", dtype="int8")
    assert pack(samples, tmp_path / "d", dtype="int8", on_bad="skip").skipped == 1
    assert verify(str(tmp_path / "d")).faults == []


def test_samples_must_be_readable_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reads the samples twice.*--format dataset --dtype int8"):
        pack(iter(corpus()), tmp_path / "d", dtype="int8")  # type: ignore[arg-type]

    class Changing:
        times = 0

        def __iter__(self) -> Iterator[Sample]:
            self.times += 1
            audio = [sample for sample in corpus() if sample.features["video"] is not None]
            only = [replace(s, features={"audio": s.features["audio"]}) for s in audio]
            return iter(only if self.times == 1 else audio)

    with pytest.raises(ValueError, match="video was not there when the scales were found"):
        pack(Changing(), tmp_path / "d", dtype="int8")  # type: ignore[arg-type]


def test_the_same_samples_give_the_same_bytes(packed: tuple[list[Sample], Path], tmp_path: Path) -> None:
    samples, folder = packed
    pack(samples, tmp_path / "d", dtype="int8")
    for path in folder.iterdir():
        if path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "d" / path.name).read_bytes()


# --- Datasets as a source ------------------------------------------------------------------------


def test_a_dataset_is_packed_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    provenance = {
        "features": {"audio": {"space": "x-1", "settings": {"id": "x"}}},
        "command": "awtpn extract",
    }
    half, small, again = (tmp_path / name for name in ("half", "int8", "again"))
    pack(corpus(), half, provenance=provenance)
    for source, out, dtype in ((half, small, "int8"), (small, again, "float32")):
        main(["pack", str(source), str(out), "--format", "dataset", "--dtype", dtype])
    told = capsys.readouterr().out
    assert "int8: largest error of a dimension, as a share of its standard deviation: audio " in told
    ours, theirs = manifest_in(half), manifest_in(small)
    assert theirs.provenance["features"] == provenance["features"]
    assert theirs.provenance["repacked"]["dataset"] == str(half)
    assert theirs.provenance["repacked"]["command"] == "awtpn extract"
    assert (theirs.classes, theirs.columns) == (ours.classes, ours.columns)
    assert [split.class_counts for split in theirs.splits.values()] == [
        split.class_counts for split in ours.splits.values()
    ]
    for split in ("train", "test"):
        metadata = [dict(FeatureStream(str(d), split=split).metadata()) for d in (half, small, again)]
        assert metadata[0] == metadata[1] == metadata[2]
        exact, wide = values_by_key(str(small), split), values_by_key(str(again), split)
        for key, features in exact.items():
            for name, values in features.items():
                np.testing.assert_array_equal(values, wide[key][name])
    assert "quantized" not in manifest_in(again).provenance


def test_extraction_names_the_two_commands() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["extract", "clips", "data/clips", "--dtype", "int8"])
    told = str(stop.value.code)
    assert (
        "extract with --dtype float16, then run `awtpn pack data/clips data/clips-int8 --format dataset "
        in told
    )


def test_damage_of_a_dataset_is_refused_or_skipped(tmp_path: Path) -> None:
    pack(corpus(), tmp_path / "d")
    entry = manifest_in(tmp_path / "d").splits["train"].shards[1]
    with open(tmp_path / "d" / entry.name, "r+b") as file:
        file.truncate(1000)
    words = ["pack", str(tmp_path / "d"), str(tmp_path / "out"), "--format", "dataset", "--dtype", "int8"]
    with pytest.raises(SystemExit, match=entry.name):
        main(words)
    assert not (tmp_path / "out" / "manifest.json").exists()
    main([*words, "--on_bad", "skip"])
    found = manifest_in(tmp_path / "out")
    assert found.skipped == entry.utterances
    assert found.splits["train"].utterances == 40 - entry.utterances


def test_recordings_are_not_packed_anew(tmp_path: Path) -> None:
    sound = Recording("waveform", 16000.0, [1600])
    samples = [Sample("a", "train", "calm", {"audio": np.zeros(4000, np.int16)})]
    pack(samples, tmp_path / "d", recordings={"audio": sound})
    with pytest.raises(ValueError, match="audio are recordings, which are not packed anew"):
        read(tmp_path / "d")


def test_recordings_beside_int8_features_stay(tmp_path: Path) -> None:
    sound = Recording("waveform", 16000.0, [1600])
    draws = rng()
    samples = [
        Sample(
            f"a{i}",
            "train",
            "calm",
            {"audio": draws.integers(-99, 99, 4000).astype(np.int16), "text": draws.normal(size=(9, 4))},
        )
        for i in range(5)
    ]
    manifest = pack(samples, tmp_path / "d", recordings={"audio": sound}, dtype="int8")
    assert manifest.modalities["audio"].quantization is None
    assert manifest.modalities["text"].dtype == "int8"
    batch = next(FeatureStream(str(tmp_path / "d"), global_batch_size=5, shuffle=False).epoch(0))
    assert batch.features["audio"].quantization is None
    assert batch.features["audio"].dequantized().dtype == torch.int16
    np.testing.assert_allclose(
        batch.features["text"].dequantized()[:9], samples[0].features["text"], atol=0.02
    )
    assert verify(str(tmp_path / "d")).faults == []
