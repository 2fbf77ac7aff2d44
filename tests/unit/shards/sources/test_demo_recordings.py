"""The demo corpus of recordings, and the small encoders for it."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders_in_models_support import features
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from awtpn.config.settings import DataConfig
from awtpn.model.encoders.opening import open_encoder
from awtpn.model.encoders.settings import DEMO_ENCODER, EncoderSettings
from awtpn.run.data import stream_source
from awtpn.run.demos import located_encoder
from shards import FeatureStream, Sample
from shards.format.recording import FULL_SCALE
from shards.sources import demo
from shards.sources.made_up import demo_recordings, moments, small_encoders
from shards.tools.verify import verify

SMALL = {"train": 12, "val": 4, "test": 8}


def made(seed: int = 0, **sizes: int) -> list[Sample]:
    """Utterances of splits of these sizes."""
    source = demo_recordings.samples(seed, **({"train": 0, "val": 0, "test": 0} | sizes))
    return [sample for sample in source.samples if isinstance(sample, Sample)]


@pytest.fixture(scope="module")
def utterances() -> list[Sample]:
    return made(train=400)


def recording(sample: Sample, modality: str) -> np.ndarray:
    found = sample.features[modality]
    assert found is not None
    return found


def labels_of(samples: list[Sample]) -> np.ndarray:
    return np.array([demo_recordings.EMOTIONS.index(str(sample.label)) for sample in samples])


def test_the_same_seed_makes_the_same_recordings() -> None:
    for one, other in zip(made(1, **SMALL), made(1, **SMALL), strict=True):
        assert one.key == other.key
        assert one.meta == other.meta
        for modality in ("audio", "video"):
            np.testing.assert_array_equal(recording(one, modality), recording(other, modality))
    one, other = (recording(made(seed, train=1)[0], "video")[:1] for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_the_folder_names_these_recordings() -> None:
    """Give `demo_recordings.FOLDER` another value together with the figures here."""
    source = demo_recordings.samples(0, 8, 4, 4)
    found = [sample for sample in source.samples if isinstance(sample, Sample)]
    total = {
        m: sum(float(np.abs(recording(s, m).astype(float)).sum()) for s in found) for m in ("audio", "video")
    }
    assert total == pytest.approx({"audio": 192178173, "video": 50080588}, rel=1e-5)
    digest = digest_of(source.provenance["settings"])
    assert f"demo-recordings-{digest}" == demo_recordings.FOLDER


def test_the_folder_names_these_encoders() -> None:
    """Give `demo_recordings.ENCODERS_FOLDER` another value with every change of the encoders' settings."""
    digest = digest_of(
        {name.lower(): value for name, value in vars(small_encoders).items() if name.isupper()}
    )
    assert f"demo-encoders-{digest}" == demo_recordings.ENCODERS_FOLDER


def digest_of(settings: object) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def test_classes_are_balanced_and_lengths_spread(utterances: list[Sample]) -> None:
    assert np.bincount(labels_of(utterances)).tolist() == [100] * 4
    seconds = np.array([len(recording(sample, "audio")) / moments.RATE for sample in utterances])
    assert seconds.min() >= demo_recordings.SHORTEST
    assert seconds.max() <= demo_recordings.LONGEST
    assert seconds.max() / seconds.min() > 15  # of 400; of the whole corpus up to 30
    assert np.median(seconds) == pytest.approx(demo_recordings.MEDIAN_SECONDS, rel=0.15)
    for sample, duration in zip(utterances, seconds, strict=True):
        pictures = recording(sample, "video")
        assert pictures.shape[1:] == (moments.SIDE, moments.SIDE, 3)
        assert len(pictures) == int(duration * moments.FPS + 1e-9)
        assert sample.meta["seconds"] == pytest.approx(duration)


def test_informative_moments_are_short(utterances: list[Sample]) -> None:
    shares = []
    for sample in utterances:
        steps, pictures = len(recording(sample, "audio")) // demo_recordings.STEP, recording(sample, "video")
        audio, video = sample.meta["informative_audio"], sample.meta["informative_video"]
        assert len(audio) > 0
        assert max(audio) < steps
        assert len(video) > 0
        assert max(video) < len(pictures)
        shares.append((len(audio) / steps, len(video) / len(pictures)))
    # Half of the utterances are short, and have at least one moment.
    assert np.median(shares, 0).max() < 0.25


def test_steps_that_a_word_fills_by_half() -> None:
    step = demo_recordings.STEP
    assert demo_recordings.informative_steps([(0, step)], 3) == [0]
    assert demo_recordings.informative_steps([(step // 2, 2 * step + step // 2 - 1)], 3) == [0, 1]
    assert demo_recordings.informative_steps([(2 * step, 4 * step)], 3) == [2]


def test_each_pair_of_neighboring_tones_belongs_to_one_class() -> None:
    pairs = [pair for order in moments.ORDERS for pair in pairwise(order)]
    assert len(set(pairs)) == len(pairs) == 12


def mean_spectrum(sound: np.ndarray) -> np.ndarray:
    """Logarithm of the mean power in 24 bands up to 1.5 kHz, over frames of 32 ms: [24]."""
    frames = sound[: len(sound) // 128 * 128].reshape(-1, 128) / FULL_SCALE
    power = np.abs(np.fft.rfft(frames * np.hanning(128))) ** 2
    found: np.ndarray = np.log(power.mean(0)[:48].reshape(24, 2).mean(1))
    return found


def mean_picture(pictures: np.ndarray) -> np.ndarray:
    """Mean over the pictures and colors, in squares of 2 x 2 pixels: [256]."""
    found: np.ndarray = pictures.mean((0, 3)).reshape(16, 2, 16, 2).mean((1, 3)).ravel()
    return found


def test_trivial_statistics_say_nothing_of_the_class(utterances: list[Sample]) -> None:
    label = labels_of(utterances)
    rows = {
        "spectrum": np.stack([mean_spectrum(recording(sample, "audio")) for sample in utterances]),
        "picture": np.stack([mean_picture(recording(sample, "video")) for sample in utterances]),
        "lengths and deviations": np.array(
            [
                [len(recording(s, "audio")), recording(s, "audio").std(), recording(s, "video").std()]
                for s in utterances
            ]
        ),
    }
    for what, values in rows.items():
        train, test = values[:250], values[250:]
        scaler = StandardScaler().fit(train)
        model = LogisticRegression(C=0.01, max_iter=200).fit(scaler.transform(train), label[:250])
        # Chance is 0.25, with a standard deviation of 0.035 over 150 utterances.
        assert model.score(scaler.transform(test), label[250:]) < 0.38, what


def pitches_of(word: np.ndarray) -> tuple[int, ...]:
    """The pitch of each tone of a word, as positions in PITCHES."""
    found = []
    for tone in word.reshape(4, moments.TONE) / FULL_SCALE:
        power = np.abs(np.fft.rfft(tone, moments.RATE))  # of 1 Hz
        found.append(int(np.abs(np.log(np.array(moments.PITCHES) / power.argmax())).argmin()))
    return tuple(found)


def lying_of(picture: np.ndarray) -> tuple[int, ...]:
    """Whether the stripes of each square of a picture lie."""
    gray, half = picture.mean(-1), moments.SIDE // 2
    found = []
    for square in range(4):
        row, column = half * (square // 2), half * (square % 2)
        own = gray[row : row + half, column : column + half]
        found.append(int(np.abs(np.diff(own, axis=0)).sum() > np.abs(np.diff(own, axis=1)).sum()))
    return tuple(found)


def test_words_and_arrangements_say_the_class() -> None:
    rng = np.random.default_rng(0)
    for label in range(4):
        sound, words = moments.draw_sound(rng, label, 20_000)
        assert len(words) == 3  # of 25 slots
        for begin, end in words:
            assert pitches_of(sound[begin:end]) == moments.ORDERS[label]
        pictures, of_class = moments.draw_pictures(rng, label, 25)
        assert len(of_class) == 3
        for i, picture in enumerate(pictures):
            expected = {moments.ARRANGEMENTS[label]} if i in of_class else set(moments.OTHERS)
            assert lying_of(picture) in expected


def test_the_demo_is_a_dataset_that_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, expected = demo_recordings.samples, made(**SMALL)
    monkeypatch.setattr(demo_recordings, "samples", lambda: samples(0, **SMALL))
    url = demo.ensure_demo(tmp_path, "recordings")
    assert Path(url).name == demo_recordings.FOLDER
    monkeypatch.setattr(demo_recordings, "samples", None)  # not made again
    source = stream_source(DataConfig(train="demo-recordings", cache_dir=str(tmp_path)), "val")
    assert source is not None
    assert source["url"] == url
    assert not verify(url, progress=False).faults
    stream = FeatureStream(url, split="train", global_batch_size=12, shuffle=False)
    assert stream.name == "the built-in demo"
    [batch] = stream.epoch(0)
    for i, sample in enumerate(expected[:12]):
        sound = recording(sample, "audio")
        first, last = batch.features["audio"].host_offsets[i : i + 2].tolist()
        assert int(batch.features["audio"].samples[i]) == len(sound)
        stored = batch.features["audio"].values[first:last].flatten()
        np.testing.assert_array_equal(stored[: len(sound)], sound)


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_the_small_encoders_are_made_once_and_encode_the_corpus(
    modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.random.get_rng_state()
    settings = located_encoder(EncoderSettings(DEMO_ENCODER, tune="full"), modality, str(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), state)
    files = sorted(path.name for path in Path(settings.model).iterdir())
    assert files == ["config.json", "model.safetensors", "preprocessor_config.json"]
    monkeypatch.setattr(small_encoders, "save", None)  # not made again
    assert located_encoder(settings, modality, None) == settings
    again = located_encoder(EncoderSettings(DEMO_ENCODER), modality, str(tmp_path))
    assert again.model == settings.model

    encoder = open_encoder(modality, settings, demo_recordings.RECORDINGS[modality])
    recordings = [recording(sample, modality) for sample in made(test=2)]
    [first, second] = features(encoder, recordings)
    assert [x.shape for x in (first, second)] == [(len(first), 64), (len(second), 64)]
    # Random features do not fade through the layers.
    assert first.std(0).mean() > 0.1
