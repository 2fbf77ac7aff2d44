"""Pictures say what their figures say: colours and lengths are read back from the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from awtpn.model.modality_colors import modality_colors
from awtpn.model.task import Task
from awtpn.tracking.canvas import BLUE, VERMILION
from awtpn.tracking.captions import Caption, caption
from awtpn.tracking.figures import confusion_matrix, distances_between, prototype_map, weights_over_time
from awtpn.tracking.snapshot import Example

CLASSES = ["neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised", "bored", "proud"]


def share_of(picture: NDArray[np.uint8], colour: str) -> float:
    """Share of the pixels that have a colour "#rrggbb"."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)
    return float((picture == rgb).all(-1).mean())


def dark(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How far each pixel is from white, [H, W] in 0..1."""
    return 1 - picture.astype(np.float64).mean(-1) / 255


def cells(picture: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """The colour of each cell of a confusion matrix beside its numbers, [count, count, 3]."""
    # Without a right answer all cells of a row are alike, so the matrix is the area that is not white.
    empty = confusion_matrix(np.ones((count, count), np.int64), CLASSES[:count], "")
    area = np.argwhere((empty != 255).any(-1) & (np.ptp(empty, axis=-1) > 5))
    (top, left), (bottom, right) = area.min(0), area.max(0)
    rows = np.linspace(top, bottom, count + 1)[:-1] + 4
    columns = np.linspace(left, right, count + 1)[:-1] + 4
    return picture[np.ix_(rows.astype(int), columns.astype(int))]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_a_confusion_matrix_is_darker_where_more_of_a_row_is(count: int) -> None:
    rng = np.random.default_rng(count)
    confusion = rng.integers(0, 20, (count, count)) + 60 * np.eye(count, dtype=np.int64)
    picture = confusion_matrix(confusion, CLASSES[:count], "validation")
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert 400 < picture.shape[1] < 1000, "readable, and no larger than a screen"
    darkness = dark(cells(picture, count))
    share = confusion / confusion.sum(1, keepdims=True)
    order = np.argsort(share.ravel())
    assert (np.diff(darkness.ravel()[order]) >= -0.02).all()
    assert darkness.ravel()[order[-1]] > darkness.ravel()[order[0]] + 0.2


def test_a_confusion_matrix_of_many_classes_has_no_numbers() -> None:
    many = [f"class {i}" for i in range(40)]
    picture = confusion_matrix(np.eye(40, dtype=np.int64), many, "")
    assert picture.shape[1] < 1300
    numbers = confusion_matrix(np.zeros((40, 40), np.int64), many, "")
    assert numbers.shape == picture.shape, "an empty matrix can be drawn"


def test_distances_are_those_between_rows() -> None:
    table = np.array([[0, 0], [3, 4], [0, 1]], np.float32)
    expected = [[0, 5, 1], [5, 0, 18**0.5], [1, 18**0.5, 0]]
    np.testing.assert_allclose(distances_between(table), expected, atol=1e-6)


def test_prototypes_that_moved_have_bars() -> None:
    table = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    first = prototype_map(table, CLASSES[:6], None, "")
    still = prototype_map(table, CLASSES[:6], table, "")
    moved = table.copy()
    moved[2] += 1
    one = prototype_map(table, CLASSES[:6], moved, "")
    moved[4] += 1
    two = prototype_map(table, CLASSES[:6], moved, "")
    blue = [share_of(picture, BLUE) for picture in (first, still, one, two)]
    assert blue[0] == blue[1] == 0
    assert blue[3] == pytest.approx(2 * blue[2], rel=0.02)
    # Three of each of two classes.
    assert prototype_map(table, CLASSES[:2], moved, "").shape == first.shape
    assert share_of(prototype_map(np.full((1, 4), np.nan, np.float32), ["one"], None, ""), "#ffffff") > 0.5


def example(right: bool | None, **weights: list[float]) -> Example:
    arrays = {name: np.array(of, np.float32) for name, of in weights.items()}
    words = Caption("neutral", "neutral 50 %" if right else "calm 50 %", right)
    return Example("a key of an utterance that is longer than its column", words, arrays)


def test_weights_fill_areas_of_their_size() -> None:
    even = [0.25] * 4
    peak = [0.0, 1.0, 0.0, 0.0]
    blue, red = BLUE, VERMILION
    # One scale per column, so that with a peak among them the even weights take a quarter of their height.
    flat = weights_over_time([example(True, audio=even)] * 2, "")
    mixed = weights_over_time([example(True, audio=even), example(True, audio=peak)], "")
    # 4 x 1 of 2 twice, against 4 x 1 of 4 and 1 x 4 of 4 (a thin line crosses the even ones).
    assert share_of(mixed, blue) == pytest.approx(share_of(flat, blue) / 2, rel=0.15)
    missing = weights_over_time([example(False, audio=even, video=[])], "")
    assert share_of(missing, red) < 0.01, "nothing but the verdict"
    both = weights_over_time([example(False, audio=even, video=even)], "")
    assert share_of(both, red) > 0.05
    assert both.shape == missing.shape
    nan = weights_over_time([example(True, audio=[float("nan"), 1.0])], "")
    assert nan.shape[1] == flat.shape[1]


def test_each_modality_has_a_column_of_its_color() -> None:
    even = [0.25] * 4
    names = ["audio", "video", "text", "pose"]
    widths = []
    for used in range(1, 5):
        shown = names[:used]
        drawn = weights_over_time([example(True, **dict.fromkeys(shown, even))] * 2, "")
        widths.append(drawn.shape[1])
        # The verdict is blue, too.
        assert [
            name for name, color in modality_colors(names).items() if share_of(drawn, color) > 0.02
        ] == shown
    assert np.ptp(np.diff(widths)) <= 1, "rounded to pixels"


def test_an_answer_that_is_neither_right_nor_wrong_has_no_color() -> None:
    even = [0.25] * 4
    shares = {}
    for right in (True, False, None):
        drawn = weights_over_time([example(right, text=even)], "")  # text is neither blue nor vermilion
        shares[right] = [share_of(drawn, color) > 0 for color in (BLUE, VERMILION)]
    assert shares == {True: [True, False], False: [False, True], None: [False, False]}
    plain, headed = (weights_over_time([example(None, text=even)], "", words) for words in ("", "valence"))
    assert plain.shape == headed.shape
    assert (plain != headed).any(-1).sum() > 20, "the heading"


def test_groups_of_prototypes_are_apart() -> None:
    table = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    names = [f"{name} {value}" for name in ("valence", "arousal") for value in (1, 2, 3, 4)]
    one = prototype_map(table, names, None, "", [8])
    two = prototype_map(table, names, None, "", [4, 4])
    assert one.shape == two.shape
    assert (one == prototype_map(table, names, None, "")).all()
    changed = np.argwhere((one != two).any(-1))
    # A cross in the middle of the matrix, and a line beside it.
    rows, columns = (np.unique(axis, return_counts=True) for axis in changed.T)
    assert rows[0][rows[1].argmax()] == pytest.approx(changed[:, 0].mean(), abs=3)
    assert len(columns[0][columns[1] > 100]) <= 6
    assert (two[tuple(changed.T)] == 255).all(-1).mean() > 0.5


def test_a_thousand_levels_have_some_names() -> None:
    table = np.random.default_rng(0).normal(size=(1_000, 4)).astype(np.float32)
    image = prototype_map(table, [f"valence {i / 100}" for i in range(1_000)], table, "", [1_000])
    assert image.shape[1] < 1_300


def test_the_same_validation_is_drawn_the_same() -> None:
    table = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    first, second = (prototype_map(table, CLASSES[:4], table + 1, "title") for _ in range(2))
    assert (first == second).all()


def test_names_are_text_and_no_formulas() -> None:
    """What is no formula would end a run in an error, and what is one would be drawn as another name."""
    names = [r"$\frac{1}$", "$x^2$", "sad\x1b[2J\n\N{RIGHT-TO-LEFT OVERRIDE}"]
    table = np.eye(3, 4, dtype=np.float32)
    confusion_matrix(np.eye(3, dtype=np.int64), names, "validation")
    prototype_map(table, names, None, "prototypes")
    weights = {"audio": np.ones(2, np.float32) / 2}
    words = [
        caption(np.zeros(1), np.eye(3)[1], Task("classification", [*names[i:], *names[:i]])) for i in range(3)
    ]
    weights_over_time([Example(r"$\frac$", of, weights) for of in words], "weights", names[2])
