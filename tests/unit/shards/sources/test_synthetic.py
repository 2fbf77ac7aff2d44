"""The generator of made-up corpora: each setting does what it says, and nothing else."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import awtpn, refusal

from awtpn.cli.parser import make_parser
from shards import FeatureStream, Sample
from shards.sources import demo, find_sources, synthetic
from shards.sources.made_up.features import draw_informative, smoothed
from shards.sources.made_up.labels import class_counts
from shards.sources.made_up.settings import PRESETS, RANGES, Settings

TOTALS = {"audio": 138484.076, "video": 94822.533}
LABELS = "53212005031231215002"


def made(**settings: Any) -> list[Sample]:
    """Few utterances, unless the settings say how many."""
    source = synthetic.make(Settings(**{"utterances": 60, "val": 12, "test": 12} | settings))
    found = [sample for sample in source.samples if isinstance(sample, Sample)]
    assert len(found) == source.total
    return found


def of_split(samples: list[Sample], split: str) -> list[Sample]:
    return [sample for sample in samples if sample.split == split]


def array(sample: Sample, modality: str) -> np.ndarray:
    values = sample.features[modality]
    assert values is not None
    return values


def same_features(one: list[Sample], other: list[Sample], modality: str) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(array(a, modality), array(b, modality)) for a, b in pairs)


def by_class(samples: list[Sample], statistic: Any) -> tuple[np.ndarray, np.ndarray]:
    """A statistic over time of the audio: its mean per class [C, D], and the deviation around it [D]."""
    rows = np.stack([statistic(array(sample, "audio"), axis=0) for sample in samples])
    true = np.array([sample.meta["true_label"] for sample in samples])
    means = {name: rows[true == name].mean(0) for name in sorted(set(true))}
    return np.stack([*means.values()]), (rows - np.stack([means[name] for name in true])).std(0)


def test_shapes_and_metadata() -> None:
    samples = made(steps=40, classes=3, dims=("audio=5", "video=2", "text=7"))
    assert [len(of_split(samples, split)) for split in ("train", "val", "test")] == [60, 12, 12]
    for sample in samples:
        assert {name: array(sample, name).shape[1] for name in sample.features} == {
            "audio": 5,
            "video": 2,
            "text": 7,
        }
        assert all(array(sample, name).dtype == np.float32 for name in sample.features)
        assert sample.meta.keys() == {
            "true_label", "speaker", "fold", "informative_audio", "informative_video", "informative_text"
        }  # fmt: skip
        assert all(sample.meta[f"informative_{name}"] for name in sample.features)
    assert {sample.label for sample in samples} == {"class_0", "class_1", "class_2"}


def test_the_same_seed_makes_the_same_corpus() -> None:
    assert same_features(made(), made(), "audio")
    assert not same_features(made(), made(seed=1), "audio")


def test_utterances_of_these_settings() -> None:
    """Raise `synthetic.VERSION` together with the figures here."""
    assert synthetic.VERSION == 1
    samples = made(smoothness=0.5, label_noise=0.2, missing=0.5, speaker_offset=1.0, noise_offset=0.4)
    found = {
        name: sum(
            float(np.abs(values).sum()) for s in samples if (values := s.features[name]) is not None
        )
        for name in ("audio", "video")
    }  # fmt: skip
    assert found == pytest.approx(TOTALS, rel=1e-5)
    assert "".join(sample.label[-1] for sample in samples[:20] if sample.label) == LABELS


def test_a_setting_leaves_the_others_as_they_are() -> None:
    base = made()
    more = made(utterances=90)
    assert same_features(of_split(base, "test"), of_split(more, "test"), "audio")
    assert same_features(base, made(dims=("text=3", "audio=32")), "audio")
    for other in (made(label_noise=0.3), made(useless="video"), made(speakers=6)):
        assert same_features(base, other, "audio")
    few, many = made(missing=0.2), made(missing=0.6)
    for one, two, three in zip(base, few, many, strict=True):
        assert one.meta["true_label"] == two.meta["true_label"] == three.meta["true_label"]
        for name in ("audio", "video"):
            assert two.features[name] is None or np.array_equal(array(two, name), array(one, name))
            assert two.features[name] is not None or three.features[name] is None


def test_steps_are_the_median_length() -> None:
    lengths = [len(array(sample, "audio")) for sample in made(utterances=400, steps=100, dims=("audio=1",))]
    assert np.median(lengths) == pytest.approx(100, rel=0.1)
    assert min(lengths) >= 36
    assert max(lengths) <= 214


@pytest.mark.parametrize("smoothness", [0.0, 0.9])
def test_the_share_of_informative_steps(smoothness: float) -> None:
    samples = made(utterances=300, steps=100, informative=0.3, smoothness=smoothness, dims=("audio=1",))
    counts = [len(sample.meta["informative_audio"]) for sample in samples]
    assert sum(counts) / sum(len(array(s, "audio")) for s in samples) == pytest.approx(0.3, abs=0.02)
    assert min(counts) >= 1
    rng = np.random.default_rng(0)
    assert draw_informative(rng, 9, 0, 0).sum() == 1
    assert draw_informative(rng, 9, 1, 0).all()


def test_carrier_steps() -> None:
    samples = made(utterances=200, signal=1.0, signal_noise=0.3, signal_offset=0.2, noise=2.0)
    means, spread = np.zeros((6, 32)), []
    for position in range(6):
        of_class = [s for s in samples if s.meta["true_label"] == f"class_{position}"]
        steps = np.concatenate([array(s, "audio")[s.meta["informative_audio"]] for s in of_class])
        means[position] = steps.mean(0)
        spread.append(steps.std(0).mean())
    assert means.std() == pytest.approx(1.0, rel=0.2)
    assert np.mean(spread) == pytest.approx(np.hypot(0.3, 0.2), rel=0.1)
    others = [np.delete(array(s, "audio"), s.meta["informative_audio"], axis=0) for s in samples]
    assert np.concatenate(others).std() == pytest.approx(2.0, rel=0.05)
    shifted = made(utterances=200, noise_offset=1.0, steps=200, dims=("audio=8",), informative=0.0)
    assert np.std([array(s, "audio").mean(0) for s in shifted]) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("carrier", "in_mean", "in_deviation"),
    [("mean", True, False), ("deviation", False, True), ("both", True, True)],
)
def test_other_carriers(carrier: str, in_mean: bool, in_deviation: bool) -> None:
    samples = made(utterances=240, steps=100, carrier=carrier, signal=1.0, signal_offset=0.0)
    for statistic, carries in ((np.mean, in_mean), (np.std, in_deviation)):
        means, noise = by_class(samples, statistic)
        assert bool(means.std(0).mean() > 2 * noise.mean()) is carries
    assert "informative_audio" not in samples[0].meta


def test_imbalance() -> None:
    assert class_counts(600, 6, 1).tolist() == [100] * 6
    counts = class_counts(1000, 5, 16)
    assert counts.tolist() == [516, 258, 129, 65, 32]
    rare = class_counts(20, 6, 50)
    assert rare.sum() == 20
    assert rare.min() == 1
    labels = [sample.label for sample in of_split(made(utterances=100, imbalance=4, classes=3), "train")]
    assert [labels.count(f"class_{i}") for i in range(3)] == class_counts(100, 3, 4).tolist()


def test_missing_modalities() -> None:
    train = of_split(made(utterances=100, missing=0.6), "train")
    lacking = [[name for name, values in sample.features.items() if values is None] for sample in train]
    assert sum(map(len, lacking)) == 60
    assert max(map(len, lacking)) == 1
    assert {name for names in lacking for name in names} == {"audio", "video"}


@pytest.mark.parametrize("carrier", ["steps", "both"])
def test_a_useless_modality(carrier: str) -> None:
    samples = made(utterances=240, steps=100, carrier=carrier, signal=2.0, useless="audio")
    for statistic in (np.mean, np.std):
        means, noise = by_class(samples, statistic)
        assert means.std(0).mean() < noise.mean() / 3
    assert not any(sample.meta.get("informative_audio") for sample in samples)
    assert carrier == "both" or all(sample.meta["informative_video"] for sample in samples)


def test_wrong_labels_are_never_in_the_test() -> None:
    samples = made(utterances=100, val=50, label_noise=0.3)
    wrong = {sample.key for sample in samples if sample.label != sample.meta["true_label"]}
    assert [sum(key.startswith(split) for key in wrong) for split in ("train", "val", "test")] == [30, 15, 0]


def test_speakers() -> None:
    samples = made(utterances=100, steps=200, speakers=10, speaker_offset=2.0, signal=0.5, noise=0.5)
    speakers = {split: {s.meta["speaker"] for s in of_split(samples, split)} for split in ("train", "test")}
    assert [len(names) for names in speakers.values()] == [10, 5]
    assert not speakers["train"] & speakers["test"]
    folds = {(sample.meta["speaker"], sample.meta["fold"]) for sample in of_split(samples, "train")}
    assert len(folds) == 10
    assert {fold for _, fold in folds} == {0, 1, 2, 3}
    means = [
        np.mean([array(s, "audio").mean(0) for s in samples if s.meta["speaker"] == name], axis=0)
        for name in sorted(speakers["train"])
    ]
    assert np.std(means) == pytest.approx(1.0, rel=0.1)
    assert "speaker" not in made(speakers=0)[0].meta


def test_smoothness() -> None:
    noise = smoothed(np.random.default_rng(0).standard_normal((300, 400)), 0.8)
    assert noise[0].std() == pytest.approx(1, rel=0.1)
    assert noise[-1].std() == pytest.approx(1, rel=0.1)
    assert (noise[1:] * noise[:-1]).mean() == pytest.approx(0.8, rel=0.03)
    white = np.random.default_rng(1).standard_normal((50, 1))
    expected = white[0]
    for row in white[1:]:
        expected = 0.7 * expected + np.sqrt(1 - 0.7**2) * row
    np.testing.assert_allclose(smoothed(white, 0.7)[-1], expected, rtol=1e-9)


def test_it_can_be_as_the_demo_is() -> None:
    """The constants of the demo as settings, and the same norms and counts of time steps."""
    settings = {"utterances": 400, "steps": demo.MEDIAN_STEPS, "informative": demo.INFORMATIVE_SHARE,
                "classes": len(demo.EMOTIONS), "speakers": 0, "signal": demo.SIGNAL, "signal_offset": 0.0,
                "signal_noise": demo.SIGNAL_NOISE, "noise": demo.NOISE,
                "noise_offset": demo.SHIFT}  # fmt: skip
    own, theirs = made(**settings), [s for s in demo.samples(train=400).samples if isinstance(s, Sample)]
    for name, dim in demo.DIMS.items():
        found = []
        for samples in (own, theirs):
            steps = [array(s, name) for s in samples]
            informative = np.concatenate([array(s, name)[s.meta[f"informative_{name}"]] for s in samples])
            lengths = [len(values) for values in steps]
            found.append([np.mean(lengths), min(lengths), max(lengths), len(informative) / sum(lengths),
                          informative.std(), np.concatenate(steps).std()])  # fmt: skip
        np.testing.assert_allclose(*found, rtol=0.12)
        assert steps[0].shape[1] == dim


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        *(({name: low - 1}, f"{name} {low - 1:g}: must be from {low:g} ")
          for name, (low, _) in RANGES.items()),
        ({"smoothness": 1.0}, "smoothness 1: must be from 0 to 0.999"),
        ({"informative": 1.5}, "informative 1.5: must be from 0 to 1"),
        ({"noise": -1.0}, "noise -1: must be at least 0"),
        ({"signal": float("nan")}, "signal nan: must be at least 0"),
        ({"seed": -1}, "seed -1: must be at least 0"),
        ({"carrier": "words"}, "carrier 'words': must be steps or mean or deviation or both"),
        ({"utterances": 5}, "utterances 5: must be at least 1 for each of the 6 classes"),
        ({"speakers": 0, "speaker_offset": 1.0}, "speaker_offset needs speakers"),
        ({"missing": 0.1, "dims": ("audio=4",)}, "missing 0.1: must be 0, since the only modality"),
        ({"useless": "text"}, "useless 'text': must be one of several modalities; dims has audio, video"),
        ({"dims": ("audio=4", "audio=5")}, "dims 'audio=5': write MODALITY=FEATURES"),
        ({"dims": ("audio=0",)}, "dims 'audio=0': write MODALITY=FEATURES"),
        ({"dims": ()}, "dims is empty"),
    ],
)  # fmt: skip
def test_refusals(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Settings(**settings)


def test_the_options_have_the_defaults_of_the_settings() -> None:
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(synthetic.read).parameters.items()
        if name != "source"
    }
    assert options == vars(Settings())
    assert find_sources("Source")["synthetic"].options.keys() == options.keys()


def test_the_command_lines_of_the_presets() -> None:
    """What the docstring shows makes the corpora of `PRESETS`."""
    text = (synthetic.__doc__ or "").replace("\\\n", " ")
    lines = [shlex.split(line) for line in text.splitlines() if "awtpn pack" in line]
    parser = make_parser()
    for words in lines:
        options = vars(parser.parse_args(words[1:]))
        given = {name: options[name] for name in vars(Settings()) if options[name] is not None}
        if "dims" in given:
            given["dims"] = tuple(given["dims"])
        name = Path(words[3]).name
        assert given == PRESETS.get(name, given)
    assert {Path(words[3]).name for words in lines} == {*PRESETS, "demo-like"}


def test_pack_and_read_back(tmp_path: Path) -> None:
    words = ("pack", "-", tmp_path / "out", "--format", "synthetic")
    assert "informative 2: must be from 0 to 1" in refusal(*words, "--informative", "2")
    awtpn(*words, "--utterances", 40, "--val", 8, "--test", 8, "--steps", 12, "--missing", 0.2,
          "--label_noise", 0.1, "--dims", "audio=6,video=4")  # fmt: skip
    stream = FeatureStream(str(tmp_path / "out"), split="train", global_batch_size=16)
    assert stream.classes == [f"class_{i}" for i in range(6)]
    assert {"true_label", "speaker", "fold"} <= stream.manifest.columns.keys()
    rows = {"audio": 0, "video": 0}
    for batch in stream.epoch(0):
        for name, dim in (("audio", 6), ("video", 4)):
            assert batch.features[name].values.shape[1] == dim
            rows[name] += len(batch.features[name].values)
    expected = of_split(
        made(utterances=40, val=8, test=8, steps=12, missing=0.2, label_noise=0.1,
             dims=("audio=6", "video=4")),
        "train",
    )  # fmt: skip
    assert rows == {
        name: sum(len(v) for s in expected if (v := s.features[name]) is not None) for name in rows
    }
    meta = dict(stream.metadata())
    assert [meta[s.key]["informative_audio"] for s in expected] == [
        s.meta["informative_audio"] for s in expected
    ]
