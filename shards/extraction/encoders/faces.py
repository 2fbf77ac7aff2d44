"""The face in each picture of a clip, found by the Haar cascade that ships with OpenCV.

The detector is Viola and Jones' (OpenCV's `haarcascade_frontalface_alt2`): frontal, about upright faces;
nothing to download; deterministic. Per picture the largest face is taken. A picture without a face gets the
box of its neighbors, up to `HOLD_S` away. Then boxes are smoothed over time, so that jitter of the detector
does not look like motion. Where a box jumps by more than its size (a cut, another person), boxes are neither
filled in nor smoothed across the jump.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

CASCADE = "haarcascade_frontalface_alt2.xml"
# Decoding scales larger pictures down to this side.
LARGEST_SIDE = 960
# Pictures are searched at this size, for faces from a tenth of their shorter side on: 20 to 40 ms each.
DETECTION_SIDE = 480
SMALLEST_SHARE = 0.1
SCALE_STEP, NEIGHBORS = 1.1, 5
# A picture further than this from any with a face has none: gaps of up to twice this length are filled.
HOLD_S = 0.5
# Seconds on each side of the running median (against single wrong boxes) and the running mean after it.
SMOOTHING_S = 0.2
# Side of the crop divided by the side of the detector's box, which excludes hair and chin.
MARGIN = 1.3


def face_settings() -> dict[str, Any]:
    """How faces are found, for the manifest."""
    return {
        "detector": CASCADE,
        "opencv": _opencv().__version__,
        "detection_side": DETECTION_SIDE,
        "hold_seconds": HOLD_S,
        "smoothing_seconds": SMOOTHING_S,
        "margin": MARGIN,
    }


def crop_faces(pictures: np.ndarray, side: int, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """The face of each picture, as a square.

    Args:
        pictures: uint8 RGB [N, H, W, 3].
        side: pixels of a crop's side.
        fps: pictures per second, by which gaps and smoothing are measured.

    Returns:
        (crops uint8 [N, side, side, 3], mask bool [N]: where a face was found, or filled in). Where the mask
        is False the crop is black. A clip without any face gives [0, side, side, 3]: its modality is missing.

    Raises:
        ImportError: OpenCV is not installed.
    """
    boxes, mask = track(find_faces(pictures), fps)
    if not mask.any():
        return np.zeros((0, side, side, 3), np.uint8), mask
    crops = np.zeros((len(pictures), side, side, 3), np.uint8)
    for i in np.flatnonzero(mask):
        crops[i] = _crop(pictures[i], boxes[i], side)
    return crops, mask


def find_faces(pictures: np.ndarray) -> np.ndarray:
    """The largest face of each picture uint8 RGB [N, H, W, 3].

    Returns:
        float64 [N, 3]: center x, center y and side of the detector's box in pixels; NaN where it found none.
    """
    cv2 = _opencv()
    cascade = _cascade()
    boxes = np.full((len(pictures), 3), np.nan)
    for i, picture in enumerate(pictures):
        scale = min(1.0, DETECTION_SIDE / max(picture.shape[:2]))
        gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        if scale < 1.0:
            gray = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        smallest = max(20, round(SMALLEST_SHARE * min(gray.shape)))
        found = cascade.detectMultiScale(
            cv2.equalizeHist(gray), SCALE_STEP, NEIGHBORS, minSize=(smallest, smallest)
        )
        if len(found):
            # Among equally large ones the leftmost: the detector's threads return them in any order.
            x, y, width, _ = min(found.tolist(), key=lambda box: (-box[2], box[0], box[1]))
            boxes[i] = (x + width / 2) / scale, (y + width / 2) / scale, width / scale
    return boxes


def track(found: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Fill in boxes of pictures without one, and smooth all of them over time.

    Args:
        found: [N, 3] as `find_faces` returns.
        fps: pictures per second.

    Returns:
        (boxes [N, 3], mask [N]: which of them are faces; the others are 0).
    """
    boxes, mask = np.zeros((len(found), 3)), np.zeros(len(found), bool)
    seen = np.flatnonzero(~np.isnan(found[:, 0]))
    if not len(seen):
        return boxes, mask
    jump = np.abs(np.diff(found[seen, :2], axis=0)).max(axis=1, initial=0) > found[seen[:-1], 2]
    gap = np.diff(seen) > 2 * HOLD_S * fps
    segment_of_seen = np.concatenate([[0], np.cumsum(jump | gap)])
    pictures = np.arange(len(found))
    nearest = np.abs(pictures[:, None] - seen).argmin(axis=1)
    mask = np.abs(pictures - seen[nearest]) <= HOLD_S * fps
    for segment in range(segment_of_seen[-1] + 1):
        at = pictures[mask & (segment_of_seen[nearest] == segment)]
        own = seen[segment_of_seen == segment]
        for axis in range(3):
            # Before the first and after the last box np.interp repeats it.
            boxes[at, axis] = _smooth(np.interp(at, own, found[own, axis]), round(SMOOTHING_S * fps))
    return boxes, mask


def _smooth(values: np.ndarray, reach: int) -> np.ndarray:
    """Running median, then running mean, of [n] over `reach` values on each side; the ends are repeated."""
    for statistic in (np.median, np.mean):
        padded = np.pad(values, reach, mode="edge")
        values = statistic(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1), axis=-1)
    return values


def _crop(picture: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """The square around a box with its margin, resized; outside the picture its edge pixels are repeated."""
    cv2 = _opencv()
    height, width = picture.shape[:2]
    length = max(1, round(box[2] * MARGIN))
    left, top = round(box[0] - length / 2), round(box[1] - length / 2)
    rows = np.clip(np.arange(top, top + length), 0, height - 1)
    columns = np.clip(np.arange(left, left + length), 0, width - 1)
    square = picture[rows[:, None], columns]
    shrinks = length > side
    return cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _cascade() -> Any:
    """A new detector for each call: threads cannot share one."""
    cv2 = _opencv()
    path = Path(cv2.data.haarcascades) / CASCADE
    cascade = cv2.CascadeClassifier(str(path))
    if cascade.empty():
        raise ValueError(f"{path}: this OpenCV ships no cascade; pip install 'opencv-python-headless<5'")
    return cascade


def _opencv() -> Any:
    try:
        import cv2
    except ImportError:
        raise ImportError('finding faces needs OpenCV: pip install "awtpn-at-scale[extract]"') from None
    if not hasattr(cv2, "CascadeClassifier"):
        raise ImportError(f"OpenCV {cv2.__version__} has no cascades; pip install 'opencv-python-headless<5'")
    return cv2
