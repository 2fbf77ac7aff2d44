"""Augmentation does what its keys say, the same for every layout, and leaves all else as it is."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from awtpn.learning.augmentation import augment, check_augment
from awtpn.learning.settings import AugmentConfig
from shards import FeatureBatch, Ragged
from shards.format.recording import Recording, in_steps, steps_of_samples

RATE, PER_STEP, SIDE = 8000, 800, 10
SOUND = Recording("waveform", float(RATE), [PER_STEP])
PICTURES = Recording("frames", 10.0, [SIDE, SIDE, 3])
RECORDINGS = {"audio": SOUND, "video": PICTURES}
ALL: dict[str, Any] = {
    "crop": [0.6, 1.0],
    "noise_snr": [5.0, 20.0],
    "noise_probability": 0.7,
    "gain": [-6.0, 6.0],
    "drop_time": 3,
    "drop_time_seconds": [0.01, 0.05],
    "drop_frequency": 2,
    "flip": 0.5,
    "brightness": [0.7, 1.3],
    "contrast": [0.7, 1.3],
    "shift": 0.3,
}
# Samples and pictures of utterances; 0: the modality is missing.
LENGTHS = [(2500, 3), (0, 2), (800, 0), (1, 1), (5000, 6), (799, 1), (3201, 4), (1600, 2)]


def waves_of(lengths: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [np.rint(3000 * generator.standard_normal(n)).astype(np.int16) for n, _ in lengths]


def make_batch(waves: list[np.ndarray], clips: list[np.ndarray], num_places: int = 0) -> FeatureBatch:
    """Utterances with these sounds [samples] and pictures [N, SIDE, SIDE, 3], and features of text."""
    steps = [in_steps(wave, PER_STEP) for wave in waves]
    sound = ragged([torch.from_numpy(s) for s in steps], torch.zeros(0, PER_STEP, dtype=torch.int16))
    label = torch.zeros(len(waves), dtype=torch.int64)
    target = torch.zeros(len(waves), 0, dtype=torch.float64)
    return FeatureBatch(
        features={
            "audio": replace(sound, samples=torch.tensor([len(w) for w in waves], dtype=torch.int64)),
            "video": ragged(
                [torch.from_numpy(c) for c in clips], torch.zeros(0, SIDE, SIDE, 3, dtype=torch.uint8)
            ),
            "text": ragged([torch.ones(2, 4)] * len(waves), torch.zeros(0, 4)),
        },
        label=label,
        host_label=label,
        target=target,
        host_target=target,
        key=[f"u{i}" for i in range(len(waves))],
        place=torch.arange(len(waves)),
        first_place=0,
        num_places=num_places or len(waves),
        epoch=0,
        step=0,
    )


def ragged(sequences: list[Tensor], empty: Tensor) -> Ragged:
    offsets = torch.tensor([0, *np.cumsum([len(s) for s in sequences])], dtype=torch.int32)
    return Ragged(torch.cat([empty, *sequences]), offsets, offsets)


def mixed(lengths: list[tuple[int, int]], num_places: int = 0) -> FeatureBatch:
    generator = np.random.default_rng(1)
    clips = [generator.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8) for _, n in lengths]
    return make_batch(waves_of(lengths), clips, num_places)


def of_sound(waves: list[np.ndarray]) -> FeatureBatch:
    return make_batch(waves, [np.zeros((0, SIDE, SIDE, 3), np.uint8)] * len(waves))


def of_pictures(clip: np.ndarray, copies: int) -> FeatureBatch:
    return make_batch([np.zeros(0, np.int16)] * copies, [clip] * copies)


def sounds(batch: FeatureBatch) -> list[np.ndarray]:
    """Each utterance's true samples, after checking that what fills its last step is zeros."""
    found = batch.features["audio"]
    assert found.samples is not None
    parts = [part.reshape(-1) for part in found.values.split(found.host_lengths)]
    for part, samples in zip(parts, found.samples.tolist(), strict=True):
        assert len(part) == PER_STEP * steps_of_samples(samples, PER_STEP)
        assert not part[samples:].any()
    return [p[:n].numpy() for p, n in zip(parts, found.samples.tolist(), strict=True)]


def clips(batch: FeatureBatch) -> list[np.ndarray]:
    found = batch.features["video"]
    return [part.numpy() for part in found.values.split(found.host_lengths)]


def changed(batch: FeatureBatch, seed: int = 1, step: int = 5, **keys: Any) -> FeatureBatch:
    config = AugmentConfig(**keys)
    config.validate()
    return augment(batch, config, RECORDINGS, seed, step)


def same(a: FeatureBatch, b: FeatureBatch) -> bool:
    return all(
        torch.equal(a.features[m].values, b.features[m].values)
        and torch.equal(a.features[m].host_offsets, b.features[m].host_offsets)
        for m in RECORDINGS
    ) and torch.equal(a.samples["audio"], b.samples["audio"])


# --- Whatever the keys ---------------------------------------------------------------------------


def test_off_and_without_recordings_the_batch_is_the_same_object() -> None:
    before = mixed(LENGTHS)
    assert changed(before) is before
    assert augment(before, AugmentConfig(**ALL), {}, 0, 0) is before
    assert changed(before, flip=0.5).features["audio"] is before.features["audio"]
    assert changed(before, gain=[1, 2]).features["video"] is before.features["video"]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3)), max_size=6),
    keys=st.sets(st.sampled_from(sorted(ALL.keys()))),
    step=st.integers(0, 99),
)
def test_recordings_keep_their_form(lengths: list[tuple[int, int]], keys: set[str], step: int) -> None:
    before = mixed(lengths)
    copies = {m: before.features[m].values.clone() for m in RECORDINGS}
    after = changed(before, step=step, **{key: ALL[key] for key in keys})
    assert after.features["text"] is before.features["text"]
    assert after.key == before.key
    for name in RECORDINGS:
        assert torch.equal(before.features[name].values, copies[name]), "it does not change"
        old, new = before.features[name], after.features[name]
        assert (new.values.dtype, new.values.shape[1:]) == (old.values.dtype, old.values.shape[1:])
        assert torch.equal(new.offsets, new.host_offsets)
        assert new.host_offsets.dtype == old.host_offsets.dtype
    for lengths_before, lengths_after in (
        ([n for n, _ in lengths], [len(sound) for sound in sounds(after)]),
        ([n for _, n in lengths], [len(clip) for clip in clips(after)]),
    ):
        for then, now in zip(lengths_before, lengths_after, strict=True):
            assert min(then, 1) <= now <= then
            assert "crop" in keys or now == then


def test_an_empty_batch() -> None:
    after = changed(mixed([], num_places=4), **ALL)
    assert (len(after), sounds(after), clips(after)) == (0, [], [])


@pytest.mark.parametrize("parts", [2, 4])
def test_no_cut_of_the_batch_changes_anything(parts: int) -> None:
    before = mixed(LENGTHS)
    whole = changed(before, **ALL)
    for part, of_part in zip(whole.split(parts), before.split(parts), strict=True):
        assert same(part, changed(of_part, **ALL))
    rows = [6, 0, 3, 1]
    assert same(whole.take(rows), changed(before.take(rows), **ALL))
    assert same(whole, changed(before, **ALL)), "the same again, as after a resume"


def test_other_seeds_steps_and_places_draw_otherwise() -> None:
    before = mixed([(4000, 4)] * 4)
    first = changed(before, **ALL)
    assert not same(first, changed(before, seed=2, **ALL))
    assert not same(first, changed(before, step=6, **ALL))
    assert not same(first, changed(replace(before, place=before.place + 4), **ALL))
    equal = make_batch(waves_of([(4000, 4)]) * 4, clips(before)[:1] * 4)
    for of_modality in (sounds, clips):
        one, *others = of_modality(changed(equal, **ALL))
        assert not any(np.array_equal(one, other) for other in others)
    noisy = [
        sounds(changed(equal, *seed_and_step, noise_snr=[9, 9])) for seed_and_step in ((1, 5), (1, 6), (2, 5))
    ]
    assert len({sound.tobytes() for of_draw in noisy for sound in of_draw}) == 12


def test_the_device_is_not_waited_for() -> None:
    """On the meta device there are no values, so what needs one fails."""
    before = mixed(LENGTHS).to("meta")
    after = changed(before, **ALL)
    for name in RECORDINGS:
        on_host = changed(mixed(LENGTHS), **ALL).features[name]
        assert after.features[name].values.device.type == after.features[name].offsets.device.type == "meta"
        assert after.features[name].values.shape == on_host.values.shape


# --- Sound ---------------------------------------------------------------------------------------


def test_noise_has_the_ratio_and_the_probability_that_are_asked_for() -> None:
    waves = waves_of([(8000, 0)] * 200)
    after = sounds(changed(of_sound(waves), noise_snr=[5, 20], noise_probability=0.5))
    ratios = [
        10 * np.log10(np.square(wave, dtype=float).mean() / np.square(noise).mean())
        for wave, sound in zip(waves, after, strict=True)
        if (noise := sound.astype(float) - wave).any()
    ]
    assert 70 <= len(ratios) <= 130, "4 standard deviations"
    assert 4.7 < min(ratios) < 6.5 < 18.5 < max(ratios) < 20.3
    assert abs(np.mean(ratios) - 12.5) < 4 * 15 / np.sqrt(12 * len(ratios))


def test_noise_is_white_and_silence_gets_none() -> None:
    wave = np.full(1 << 14, 5000, np.int16)
    noise = sounds(changed(of_sound([wave]), noise_snr=[10, 10]))[0] - 5000.0
    assert abs(noise.mean()) < 4 * noise.std() / 128
    power = np.square(np.abs(np.fft.rfft(noise)))[1:].reshape(8, -1).mean(1)
    assert np.allclose(power, power.mean(), rtol=0.15)
    silence = np.zeros(3000, np.int16)
    assert not sounds(changed(of_sound([silence]), noise_snr=[0, 0]))[0].any()


def test_gain_is_within_its_range_and_sound_is_clipped() -> None:
    wave = np.array([1000, -1000, 500] * 100, np.int16)
    after = sounds(changed(of_sound([wave] * 200), gain=[-6, 12]))
    decibels = 20 * np.log10([np.abs(sound.astype(float)).max() / 1000 for sound in after])
    assert -6.01 <= decibels.min() < -5 < 11 < decibels.max() <= 12.01
    assert abs(decibels.mean() - 3) < 4 * 18 / np.sqrt(12 * 200)
    loud = np.array([20_000, -20_000], np.int16)
    assert sounds(changed(of_sound([loud]), gain=[20, 20]))[0].tolist() == [32767, -32768]
    assert sounds(changed(of_sound([np.array([3, -5], np.int16)]), gain=[0, 0]))[0].tolist() == [3, -5]


def test_spans_of_zeros_have_their_number_and_length() -> None:
    wave = np.full(RATE, 100, np.int16)
    after = sounds(changed(of_sound([wave] * 300), drop_time=4, drop_time_seconds=[0.01, 0.03]))
    zeros = np.array([(sound == 0).mean() for sound in after])
    assert all(set(np.unique(sound)) <= {0, 100} for sound in after)
    # 0 to 4 spans of 0.02 s of 1 s on average; some overlap.
    assert 0.03 < zeros.mean() < 0.04 + 4 * 0.03 / np.sqrt(300)
    assert zeros.max() <= 4 * 0.03 + 1e-9
    assert 0.1 < (zeros == 0).mean() < 0.3, "a fifth has none"
    for sound in after:
        edges = np.flatnonzero(np.diff(np.concatenate([[100], sound, [100]])))
        lengths = edges[1::2] - edges[::2]
        assert len(lengths) <= 4
        assert not len(lengths) or lengths.min() >= 0.01 * RATE
    short = sounds(changed(of_sound([wave[:50]] * 50), drop_time=4))
    assert all((sound == 0).mean() <= 0.5 for sound in short), "half of it stays"


def test_bands_are_removed_and_others_stay() -> None:
    waves = waves_of([(1 << 13, 0)] * 100)
    after = sounds(changed(of_sound(waves), drop_frequency=3, drop_frequency_width=0.125))
    removed = []
    for wave, sound in zip(waves, after, strict=True):
        before, now = (np.square(np.abs(np.fft.rfft(w)))[:-1].reshape(64, -1).sum(1) for w in (wave, sound))
        gone = now < 0.01 * before
        # The edges of a band lie within a block of frequencies.
        border = np.zeros(64, bool)
        border[1:] |= gone[:-1]
        border[:-1] |= gone[1:]
        assert (now[~gone & ~border] > 0.95 * before[~gone & ~border]).all()
        removed.append(1 - now.sum() / before.sum())
    # 0 to 3 bands of an eighth; overlaps take some.
    assert max(removed) < 3 / 8 + 0.02
    assert 0.12 < np.mean(removed) < 0.1875 + 4 * 0.14 / 10
    assert 0.1 < np.mean([share < 1e-3 for share in removed]) < 0.42, "a quarter keeps all"
    for wave, sound in zip(waves, sounds(changed(of_sound(waves), drop_frequency=1)), strict=True):
        share = 1 - np.square(sound, dtype=float).sum() / np.square(wave, dtype=float).sum()
        assert abs(share) < 1e-3 or abs(share - 0.1) < 0.02, "all of a band, or none"


def test_crop_keeps_the_same_span_of_sound_and_pictures() -> None:
    samples, pictures = 8000, 80
    wave = np.arange(samples, dtype=np.int16)
    clip = np.broadcast_to(
        np.arange(pictures, dtype=np.uint8)[:, None, None, None], (pictures, SIDE, SIDE, 3)
    )
    after = changed(make_batch([wave] * 100, [clip.copy()] * 100), crop=[0.5, 0.9])
    shares, begins = [], []
    for sound, kept in zip(sounds(after), clips(after), strict=True):
        assert np.array_equal(sound, np.arange(sound[0], sound[0] + len(sound)))
        numbers = kept[:, 0, 0, 0].astype(int)
        assert np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(kept)))
        assert abs(numbers[0] / pictures - sound[0] / samples) <= 1 / pictures
        assert abs(len(kept) / pictures - len(sound) / samples) <= 1 / pictures
        shares.append(len(sound) / samples)
        begins.append(sound[0] / samples / (1 - shares[-1]))
    assert 0.499 <= min(shares) < 0.53 < 0.87 < max(shares) <= 0.901
    assert 0 <= min(begins) < 0.1 < 0.9 < max(begins) <= 1.01
    least = changed(mixed(LENGTHS), crop=[0.001, 0.001])
    assert [len(clip) for clip in clips(least)] == [min(1, n) for _, n in LENGTHS]


# --- Pictures ------------------------------------------------------------------------------------


def coordinates(pictures: int) -> np.ndarray:
    """[N, SIDE, SIDE, 3]: row, column and number of the picture."""
    n, row, column = np.indices((pictures, SIDE, SIDE))
    return np.stack([row, column, n], axis=-1).astype(np.uint8)


def test_flip_mirrors_all_pictures_of_an_utterance() -> None:
    clip = coordinates(3)
    after = clips(changed(of_pictures(clip, 200), flip=0.3))
    flipped = [np.array_equal(now, clip[:, :, ::-1]) for now in after]
    assert all(flip or np.array_equal(now, clip) for flip, now in zip(flipped, after, strict=True))
    assert abs(np.mean(flipped) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 200)


def test_shift_repeats_the_edges() -> None:
    clip = coordinates(2)
    grid = np.arange(SIDE)
    found = set()
    for now in clips(changed(of_pictures(clip, 200), shift=0.3)):
        down, right = SIDE // 2 - now[0, SIDE // 2, SIDE // 2, :2].astype(int)
        rows, columns = np.clip(grid - down, 0, SIDE - 1), np.clip(grid - right, 0, SIDE - 1)
        assert np.array_equal(now, clip[:, rows][:, :, columns])
        found |= {(0, down), (1, right)}
    assert found == {(dim, by) for dim in (0, 1) for by in range(-3, 4)}
    assert all(
        (now[..., 2] == clip[..., 2]).all() for now in clips(changed(of_pictures(clip, 20), shift=1.0))
    )


def test_brightness_and_contrast_scale_values_and_distances() -> None:
    clip = np.random.default_rng(0).integers(80, 120, (2, SIDE, SIDE, 3), dtype=np.uint8)
    after = clips(changed(of_pictures(clip, 100), brightness=[0.5, 1.5]))
    factors = np.array([now.mean() / clip.mean() for now in after])
    assert 0.49 < factors.min() < 0.55 < 1.45 < factors.max() < 1.51
    for now, factor in zip(after, factors, strict=True):
        assert np.abs(now - factor * clip).max() < 1
    after = clips(changed(of_pictures(clip, 100), contrast=[0.5, 2.0]))
    spreads = np.array([now.std() / clip.std() for now in after])
    assert 0.49 < spreads.min() < 0.6 < 1.9 < spreads.max() < 2.01
    assert all(abs(now.mean() - clip.mean()) < 0.5 for now in after)
    both = clips(changed(of_pictures(clip, 1), brightness=[1.2, 1.2], contrast=[1.5, 1.5]))[0]
    mean = 1.2 * clip.mean()
    assert np.abs(both - (mean + 1.5 * (1.2 * clip - mean))).max() < 0.51
    bright = np.full((1, SIDE, SIDE, 3), 200, np.uint8)
    assert (clips(changed(of_pictures(bright, 1), brightness=[2, 2]))[0] == 255).all()


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop", [0.0, 1.0]),
        ("crop", [0.9, 0.5]),
        ("crop", []),
        ("noise_snr", [1.0]),
        ("noise_snr", [float("nan"), 1.0]),
        ("gain", [0.0, 1e9]),
        ("drop_time", -1),
        ("drop_time_seconds", [0.0, 1.0]),
        ("drop_frequency", 10**9),
        ("drop_frequency_width", 1.0),
        ("noise_probability", 1.1),
        ("flip", float("nan")),
        ("brightness", [-1.0, 1.0]),
        ("contrast", [1.0, float("inf")]),
        ("shift", 2.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"augment\.{key} ") as caught:
        AugmentConfig(**asdict(AugmentConfig()) | {key: value}).validate()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "recordings", "error"),
    [
        ({"gain": [1, 2]}, {"video": PICTURES}, r"augment\.gain changes recorded sound, and no modality"),
        ({"flip": 0.5}, {"audio": SOUND}, r"augment\.flip changes recorded pictures, and no modality"),
        ({"crop": [0.5, 1]}, {}, r"augment\.crop changes recordings, and .*--audio waveform --video frames"),
    ],
)
def test_what_a_run_does_not_hold_is_refused_by_name(
    keys: dict[str, Any], recordings: dict[str, Recording], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        check_augment(AugmentConfig(**keys), recordings)
    check_augment(AugmentConfig(**keys), RECORDINGS)
    check_augment(AugmentConfig(), recordings)
