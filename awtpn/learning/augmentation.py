"""Augmentation: change recordings at random in training, before an encoder takes them.

Sound, in this order: crop, white noise, removed frequency bands, spans of zeros, gain. Bands and spans are
SpecAugment (Park et al., 2019) in the time domain, as SpeechBrain's TimeDomainSpecAugment has it (Ravanelli
et al., 2021): there, 0 to 5 spans of 1000 to 2000 samples at 16 kHz and 0 to 3 bands. (Here, each utterance
draws its own, bands are exact, and the speed stays.) Pictures: crop, mirror and shift, brightness, contrast;
an utterance's pictures are all changed alike. Two modalities of sound, or of pictures, draw the same.

What is drawn for an utterance depends on (seed, step, place in the global batch), and each is changed by
itself, so no layout, no cut into micro-batches and no resume changes the result. Sums are of integers, and
sound is computed in float64 and rounded, so that the order of additions does not matter either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from awtpn.learning.negatives import Ints, uniform
from awtpn.learning.settings import PICTURE_KEYS, SOUND_KEYS, AugmentConfig
from awtpn.model.device import to_device_async
from shards import FeatureBatch, Ragged
from shards.format.recording import FULL_SCALE, KIND_OF, Recording, steps_of_samples

# Numbers of draws; the negatives have those from 0 on, modality dropout those from 1 << 20 on. A new key goes
# to the end: then the others draw what they drew before.
FIRST_DRAW = 1 << 21
DRAWS_PER_KEY = 1 << 12
DRAWN = ("crop", *SOUND_KEYS, "noise_probability", *PICTURE_KEYS)


def check_augment(config: AugmentConfig, recordings: Mapping[str, Recording]) -> None:
    """Refuse augmentation of what a run does not have.

    Args:
        config: how recordings are changed.
        recordings: those that the run trains encoders on, by modality.

    Raises:
        ValueError: a key changes sound or pictures, and no modality of the run holds any; names the key.
    """
    sound = [name for name, recording in recordings.items() if recording.is_sound]
    pictures = [name for name in recordings if name not in sound]
    for keys, what, found in (
        (("crop",), "recordings", [*sound, *pictures]),
        (SOUND_KEYS, "recorded sound", sound),
        (PICTURE_KEYS, "recorded pictures", pictures),
    ):
        if (used := config.keys_in_use(keys)) and not found:
            options = " ".join(f"--{name} {kind}" for name, kind in KIND_OF.items())
            raise ValueError(
                f"augment.{used[0]} changes {what}, and no modality of this run holds any: leave it out, or "
                f"train an encoder on recordings, which `awtpn extract SOURCE OUT {options}` stores"
            )


def augment(
    batch: FeatureBatch, config: AugmentConfig, recordings: Mapping[str, Recording], seed: int, step: int
) -> FeatureBatch:
    """The batch with its recordings changed; the same object if nothing is to be changed.

    Args:
        batch: of this rank, or a part of it; it does not change. Its tensors stay on their device, which the
            host does not wait for.
        config: how recordings are changed.
        recordings: the modalities to change, and what their steps are; others stay as they are.
        seed, step: of the draw.

    Returns:
        Sound is int16 [steps, samples] as before, rounded and clipped, with its true number of samples;
        pictures are uint8. An utterance that lacks a modality lacks it still; one that has it keeps at least
        a sample or a picture.
    """
    features = dict(batch.features)
    draws = Draws(seed, step, batch.place.numpy())
    for name, recording in recordings.items():
        if config.keys_in_use(("crop", *(SOUND_KEYS if recording.is_sound else PICTURE_KEYS))):
            change = _augment_sound if recording.is_sound else _augment_pictures
            features[name] = change(features[name], config, recording, draws)
    changed = any(features[name] is not batch.features[name] for name in features)
    return replace(batch, features=features) if changed else batch


@dataclass(frozen=True)
class Draws:
    """The random numbers of a step, of each utterance its own.

    Attributes:
        seed, step: of the draw.
        place: [B] places in the global batch.
    """

    seed: int
    step: int
    place: Ints

    def numbers(self, key: str, count: int) -> NDArray[np.float64]:
        """[count, B] numbers in [0, 1)."""
        first = FIRST_DRAW + DRAWN.index(key) * DRAWS_PER_KEY
        return np.stack([uniform(self.seed, self.step, first + n, self.place) for n in range(count)])

    def within(self, key: str, limits: Sequence[float]) -> list[float]:
        """[B] numbers in a range."""
        low, high = limits
        found: list[float] = (low + (high - low) * self.numbers(key, 1)[0]).tolist()
        return found

    def chosen(self, key: str, probability: float) -> list[bool]:
        """[B] whether something happens that has this probability."""
        found: list[bool] = (self.numbers(key, 1)[0] < probability).tolist()
        return found

    def noise(self, i: int, length: int) -> NDArray[np.float32]:
        """[length] normally distributed numbers of utterance i: made on the host, the same for any device."""
        generator = np.random.default_rng([self.seed, self.step, FIRST_DRAW, self.place[i]])
        return generator.standard_normal(length, dtype=np.float32)


# --- Sound ---------------------------------------------------------------------------------------


def _augment_sound(ragged: Ragged, config: AugmentConfig, recording: Recording, draws: Draws) -> Ragged:
    assert ragged.samples is not None
    per_step = recording.shape[0]
    flat = ragged.values.reshape(-1)
    begins = (ragged.host_offsets[:-1].long() * per_step).tolist()
    spans = zip(begins, ragged.samples.tolist(), strict=True)
    waves = _cropped([flat[begin : begin + samples] for begin, samples in spans], config, draws)
    if config.keys_in_use(SOUND_KEYS):
        sounds = [wave.double() for wave in waves]  # copies
        if config.noise_snr:
            _add_noise(sounds, waves, config.noise_snr, config.noise_probability, draws)
        if config.drop_frequency:
            _drop_bands(sounds, config, draws)
        if config.drop_time:
            _drop_spans(sounds, config, recording.rate, draws)
        if config.gain:
            for sound, decibels in zip(sounds, draws.within("gain", config.gain), strict=True):
                sound *= 10 ** (decibels / 20)
        waves = [s.round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16) for s in sounds]
    samples = [len(wave) for wave in waves]
    steps = [steps_of_samples(n, per_step) for n in samples]
    filled = [pad(wave, (0, n * per_step - len(wave))) for wave, n in zip(waves, steps, strict=True)]
    values = torch.cat([flat[:0], *filled]).reshape(-1, per_step)
    return replace(_pack(values, steps), samples=torch.tensor(samples, dtype=torch.int64))


def _add_noise(
    sounds: list[Tensor], waves: list[Tensor], snr: list[float], probability: float, draws: Draws
) -> None:
    """Add white noise, in place: mean square of sound / mean square of noise = 10^(SNR / 10).

    Args:
        sounds: float64 [samples] each.
        waves: the same as int16.
        snr: range of the SNR in dB.
        probability: share of utterances that get noise.
    """
    decibels, noisy = draws.within("noise_snr", snr), draws.chosen("noise_probability", probability)
    for i, (sound, wave) in enumerate(zip(sounds, waves, strict=True)):
        if noisy[i] and len(wave):
            mean_square = wave.long().square().sum().double() / len(wave)
            noise = to_device_async(draws.noise(i, len(wave)), wave.device).double()
            sound += noise * (mean_square.sqrt() * 10 ** (-decibels[i] / 20))


def _drop_bands(sounds: list[Tensor], config: AugmentConfig, draws: Draws) -> None:
    """Remove 0 to `drop_frequency` bands of the given width from each sound [samples], in place.

    They lie anywhere from 0 to half the rate.
    """
    width, most = config.drop_frequency_width, config.drop_frequency
    number, *lows = draws.numbers("drop_frequency", 1 + most)
    for i, sound in enumerate(sounds):
        bands = int(number[i] * (most + 1))
        if not bands or not len(sound):
            continue
        size = _fft_size(len(sound))
        spectrum = torch.fft.rfft(sound, n=size)
        for low in lows[:bands]:
            begin = low[i] * (1 - width)
            spectrum[round(begin * size / 2) : round((begin + width) * size / 2) + 1] = 0
        sound.copy_(torch.fft.irfft(spectrum, n=size)[: len(sound)])


def _fft_size(samples: int) -> int:
    """At least `samples`, and at most an eighth more: few sizes, and of small factors.

    An FFT of a size with large factors is slow, and cuFFT prepares each size once.
    """
    unit = 1 << max(1, samples.bit_length() - 4)
    return -(-samples // unit) * unit


def _drop_spans(sounds: list[Tensor], config: AugmentConfig, rate: float, draws: Draws) -> None:
    """Set 0 to `drop_time` spans of each sound [samples] to zero, in place."""
    low, high = config.drop_time_seconds
    most = config.drop_time
    number, *rest = draws.numbers("drop_time", 1 + 2 * most)
    for i, sound in enumerate(sounds):
        spans = int(number[i] * (most + 1))
        for length_of, begin_of in zip(rest[:spans], rest[most : most + spans], strict=True):
            length = round((low + (high - low) * length_of[i]) * rate)
            length = min(length, len(sound) // (2 * spans))
            begin = int(begin_of[i] * (len(sound) - length + 1))
            sound[begin : begin + length] = 0


# --- Pictures ------------------------------------------------------------------------------------


def _augment_pictures(ragged: Ragged, config: AugmentConfig, recording: Recording, draws: Draws) -> Ragged:
    clips = _cropped(list(ragged.values.split(ragged.host_lengths)), config, draws)
    if config.flip or config.shift:
        clips = _moved(clips, config, draws)
    if config.brightness or config.contrast:
        clips = _relit(clips, config, draws)
    values = torch.cat([ragged.values[:0], *clips])
    return _pack(values, [len(clip) for clip in clips])


def _moved(clips: list[Tensor], config: AugmentConfig, draws: Draws) -> list[Tensor]:
    """Pictures [N, H, W, 3], mirrored or not, then shifted up to `shift` of the side either way."""
    flipped = draws.chosen("flip", config.flip)
    shifts = (2 * draws.numbers("shift", 2) - 1) * config.shift
    changed = []
    for i, clip in enumerate(clips):
        clip = clip.flip(2) if flipped[i] else clip
        for dim, share in ((1, shifts[0, i]), (2, shifts[1, i])):
            clip = _shifted(clip, dim, round(share * clip.shape[dim]))
        changed.append(clip)
    return changed


def _shifted(clip: Tensor, dim: int, by: int) -> Tensor:
    """Moved by so many pixels, to higher positions if above 0; the edge fills what is then empty."""
    if by == 0:
        return clip
    size = clip.shape[dim]
    edge = clip.narrow(dim, 0 if by > 0 else size - 1, 1)
    repeated = edge.expand([abs(by) if d == dim else n for d, n in enumerate(clip.shape)])
    inside = clip.narrow(dim, max(0, -by), size - abs(by))
    return torch.cat([repeated, inside] if by > 0 else [inside, repeated], dim)


def _relit(clips: list[Tensor], config: AugmentConfig, draws: Draws) -> list[Tensor]:
    """Pictures x as contrast * (b x - mean(b x)) + mean(b x), b the brightness, the mean of the utterance."""
    brightness = draws.within("brightness", config.brightness or (1.0, 1.0))
    contrast = draws.within("contrast", config.contrast or (1.0, 1.0))
    changed = list(clips)
    for i, clip in enumerate(clips):
        if clip.numel():
            mean = clip.sum(dtype=torch.int64).double() / clip.numel()
            offset = (mean * (brightness[i] * (1 - contrast[i]))).float()
            relit = clip.float().mul_(brightness[i] * contrast[i]).add_(offset)
            changed[i] = relit.round_().clamp_(0, 255).to(torch.uint8)
    return changed


# --- Both ----------------------------------------------------------------------------------------


def _cropped(parts: list[Tensor], config: AugmentConfig, draws: Draws) -> list[Tensor]:
    """Of each utterance's samples or pictures the span that is kept: the same for all its modalities."""
    if not config.crop:
        return parts
    share = draws.within("crop", config.crop)
    begin = draws.numbers("crop", 2)[1]
    kept = []
    for i, part in enumerate(parts):
        first = min(round(begin[i] * (1 - share[i]) * len(part)), max(0, len(part) - 1))
        last = round((begin[i] * (1 - share[i]) + share[i]) * len(part))
        kept.append(part[first : max(first + 1, last)])
    return kept


def _pack(values: Tensor, lengths: list[int]) -> Ragged:
    """Utterances of so many time steps, one after the other."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return Ragged(
        values=values,
        offsets=to_device_async(offsets, values.device),
        host_offsets=torch.from_numpy(offsets),
    )
