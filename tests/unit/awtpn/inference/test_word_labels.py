"""Words under a plot: none over another, each near its place."""

from __future__ import annotations

import numpy as np
import pytest

from awtpn.inference.word_labels import LONGEST, most_labels, shorten, spread, text_width, word_labels

WIDTH = 8.0  # inches


@pytest.mark.parametrize("seed", range(20))
def test_boxes_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 40))
    widths = rng.uniform(0.01, 1, count)
    widths *= rng.uniform(0.3, 1) * WIDTH / widths.sum()
    placed = spread(np.sort(rng.uniform(0, WIDTH, count)), widths, WIDTH)
    left, right = placed - widths / 2, placed + widths / 2
    assert (left[1:] >= right[:-1] - 1e-9).all()
    assert left[0] >= -1e-9
    assert right[-1] <= WIDTH + 1e-9


def test_boxes_with_room_stay_where_they_belong() -> None:
    centers = np.array([1.0, 2.0, 7.0])
    assert (spread(centers, np.full(3, 0.5), WIDTH) == centers).all()


def test_few_words_are_horizontal_and_many_vertical() -> None:
    def labels(words: list[str]) -> tuple[bool, float]:
        centers = (np.arange(len(words)) + 0.5) * WIDTH / len(words)
        found = word_labels(words, centers, np.ones(len(words), np.float32), WIDTH)
        assert found.texts == [words[i] for i in found.shown]
        return found.is_vertical, found.size

    assert labels(["happy"] * 7) == (False, 11)
    assert labels(["happy"] * 30) == (True, 11)
    assert labels(["happy"] * 57) == (True, 8)
    assert labels(["\u6211"] * 57) == (False, 8), "letters of their own are narrow enough"


def test_of_too_many_words_the_heaviest_are_written() -> None:
    count, most = 200, most_labels(WIDTH)
    weights = np.zeros(count, np.float32)
    heavy = np.arange(0, count, 4)[:most]
    weights[heavy] = 1
    found = word_labels(["a"] * count, np.linspace(0, WIDTH, count), weights, WIDTH)
    assert len(found.shown) == most
    assert set(heavy) <= set(found.shown)
    assert (np.diff(found.shown) > 0).all()
    assert (np.diff(found.centers) > 0).all()


def test_what_is_written_of_a_word() -> None:
    assert shorten("happy") == "happy"
    assert shorten("a" * 99) == "a" * (LONGEST - 1) + "\u2026"
    assert shorten("\x1b[2Ja\u202eb") == "[2Jab"
    assert shorten("\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645") == (
        "\u0646\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    )
    assert text_width("e\u0301") == text_width("e")
    assert text_width("\u6211") == 1
