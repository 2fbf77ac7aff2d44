"""Feature spaces: the same name for the same values; features of another space are refused."""

from __future__ import annotations

from typing import Any

import pytest

from shards.format.feature_space import check_same_space, space_of


def test_a_feature_space_depends_on_what_decides_the_values() -> None:
    settings = {"id": "facebook/wav2vec2-base", "revision": "abc", "layer": 9, "dtype": "float32"}
    name = space_of(settings)
    assert name.startswith("wav2vec2-base-")
    assert space_of({**settings, "dtype": "bfloat16", "versions": {"transformers": "9"}}) == name
    for change in ({"layer": 8}, {"revision": "abd"}, {"step_seconds": 0.2}):
        assert space_of(settings | change) != name
    local = {"id": "mine", "path": "/a/mine", "sha256": "77", "model_type": "wav2vec2"}
    assert space_of(local) == space_of(local | {"id": "yours", "path": "/b/yours"})
    assert space_of(local) != space_of(local | {"sha256": "78"})


def test_another_feature_space_is_refused_by_name() -> None:
    def of(**settings: Any) -> dict[str, Any]:
        return {"features": {m: {"space": space_of(s), "settings": s} for m, s in settings.items()}}

    logmel = {"id": "logmel", "version": 1, "step_seconds": 0.1}
    wav2vec = {"id": "facebook/wav2vec2-base", "layer": 9, "step_seconds": 0.1}
    with pytest.raises(
        ValueError,
        match=r"no: audio: logmel \(step_seconds 0.1\) against facebook/wav2vec2-base \(layer 9, "
        r"step_seconds 0.1\); fix",
    ):
        check_same_space(of(audio=logmel), of(audio=wav2vec), ["audio"], "no", "fix")
    with pytest.raises(
        ValueError, match=r"audio: logmel \(step_seconds 0.1\) against logmel \(step_seconds 0.2"
    ):
        check_same_space(of(audio=logmel), of(audio=logmel | {"step_seconds": 0.2}), ["audio"], "no", "fix")
    check_same_space(of(audio=logmel), of(audio=logmel, video=wav2vec), ["audio", "video"], "no", "fix")
    check_same_space(of(audio=logmel), of(audio=wav2vec), ["video"], "no", "fix")
    check_same_space({}, of(audio=wav2vec), ["audio"], "no", "fix")
    check_same_space({"features": "by hand"}, of(audio=wav2vec), ["audio"], "no", "fix")
