"""Faces: tracks made by hand, and real clips."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from support import REPO

pytest.importorskip("cv2")

from shards.extraction.encoders import open_video_encoder
from shards.extraction.encoders.faces import MARGIN, crop_faces, find_faces, track

DATA = REPO.parent / "shared" / "data"
CLIPS = [*sorted((DATA / "crema_d" / "clips").glob("*.flv")), *sorted((DATA / "ravdess").glob("*.mp4"))]


def boxes(count: int, *missing: int, x: float = 100.0, side: float = 50.0) -> np.ndarray:
    """A face at rest, not found in the pictures `missing`."""
    found = np.tile([x, 80.0, side], (count, 1))
    found[list(missing)] = np.nan
    return found


def test_short_gaps_are_filled_and_long_ones_left() -> None:
    held, mask = track(boxes(10, 3, 4, 5), fps=10)
    assert mask.all()
    assert np.allclose(held, [100, 80, 50])
    # 10 pictures a second: held for 5 on each side of the gap, and after the end.
    held, mask = track(boxes(40, *range(5, 25), *range(30, 40)), fps=10)
    assert np.flatnonzero(~mask).tolist() == [*range(10, 20), *range(35, 40)]
    assert np.allclose(held[mask], [100, 80, 50])
    assert np.allclose(held[~mask], 0)
    nothing, mask = track(boxes(3, 0, 1, 2), fps=10)
    assert not mask.any()
    assert not nothing.any()
    assert track(boxes(0), fps=10)[0].shape == (0, 3)


def test_jitter_and_single_wrong_boxes_are_smoothed_away() -> None:
    rng = np.random.default_rng(0)
    moving = np.stack([100 + 2 * np.arange(50.0), np.full(50, 80.0), np.full(50, 50.0)], axis=1)
    jittering = moving + rng.normal(0, 3, moving.shape)
    jittering[20, 2] = 90  # one box far too large
    smooth, mask = track(jittering, fps=10)
    assert mask.all()
    middle = slice(5, -5)
    assert np.abs(smooth - moving)[middle].max() < 5
    assert np.abs(smooth - moving)[middle].mean() < np.abs(jittering - moving)[middle].mean() / 1.5


def test_boxes_are_not_smoothed_across_a_cut() -> None:
    found = np.concatenate([boxes(10), boxes(10, 0, 1, x=400.0)])
    held, mask = track(found, fps=10)
    assert mask.all()
    # The gap of two goes half to each person.
    assert np.allclose(held[:, 0], [100] * 11 + [400] * 9)


def test_without_a_face_the_modality_is_missing() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 60, 80, 3), np.uint8)
    crops, mask = crop_faces(noise, 32, fps=10)
    assert crops.shape == (0, 32, 32, 3)
    assert mask.tolist() == [False] * 3
    encoder = open_video_encoder("descriptor", faces="opencv")
    assert encoder is not None
    assert encoder.encode([noise])[0].shape == (0, 148)
    assert encoder.settings["faces"]["detector"] == "haarcascade_frontalface_alt2.xml"


def test_without_opencv_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'pip install "awtpn-at-scale\[extract\]"'):
        open_video_encoder("descriptor", faces="opencv")


@pytest.mark.skipif(not CLIPS, reason=f"no clips in {DATA}")
def test_faces_of_real_clips_are_found_and_stay_put() -> None:
    from shards.extraction.media import read_frames

    for path in CLIPS:
        pictures, _ = read_frames(path, 3, (0.3, 1.3), largest_side=480)
        found = find_faces(pictures)
        # At 10 pictures a second, too, it is found in every one of these clips.
        assert np.isfinite(found).all(), path.name
        crops, mask = crop_faces(pictures, 64, fps=3)
        assert mask.all()
        assert crops.shape == (3, 64, 64, 3)
        held, _ = track(found, fps=3)
        side = held[:, 2] * MARGIN
        assert (side > 0.25 * pictures.shape[1]).all()  # these are portraits
        assert np.abs(np.diff(held[:, :2], axis=0)).max() < 0.25 * held[:, 2].min()
        # A crop of the crop's own middle still shows a face: it was not cut off.
        again = find_faces(np.repeat(np.repeat(crops[:1], 4, axis=1), 4, axis=2))
        assert abs(again[0, 0] - 128) < 40, path.name
    assert np.array_equal(found, find_faces(pictures), equal_nan=True)


def test_a_crop_at_the_edge_repeats_it() -> None:
    from shards.extraction.encoders.faces import _crop

    picture = np.zeros((40, 40, 3), np.uint8)
    picture[:, :20] = 200
    crop = _crop(picture, np.array([0.0, 20.0, 20.0]), 26)
    assert (crop == 200).all()
    crop = _crop(picture, np.array([20.0, 20.0, 10.0]), 26)
    assert (crop[:, :11] > 150).all()
    assert (crop[:, 14:] < 50).all()
