"""Colors of modalities: as they were for two, and different for others."""

from __future__ import annotations

import pytest

from awtpn.model.modality_colors import PALETTE, modality_colors


def test_audio_and_video_keep_their_colors_in_every_model() -> None:
    two = {"audio": "#0072b2", "video": "#d55e00"}
    for names in (["audio", "video"], ["audio", "video", "text", "pose"]):
        assert two.items() <= modality_colors(names).items()
    assert modality_colors(["video"]) == {"video": two["video"]}
    assert modality_colors([]) == {}


@pytest.mark.parametrize("others", [[], ["pose"], ["pose", "gaze"]])
def test_modalities_have_different_colors_in_their_order(others: list[str]) -> None:
    colors = modality_colors(["text", *others, "audio"])
    assert list(colors) == ["text", *others, "audio"]
    assert len(set(colors.values())) == len(colors)


def test_a_modality_has_the_same_color_alone() -> None:
    assert modality_colors(["text"])["text"] == modality_colors(["audio", "video", "text"])["text"]


def test_more_modalities_than_colors() -> None:
    names = [f"m{i}" for i in range(9)]
    assert set(modality_colors(names).values()) == set(PALETTE)
