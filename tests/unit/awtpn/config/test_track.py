"""Settings of trackers: how they are given, what is refused, and records from before there were any."""

from __future__ import annotations

import pytest

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config, dump, in_todays_form
from awtpn.config.settings import TrackConfig
from awtpn.run.folder import is_fixed


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("tensorboard", []),
        ("wandb", ["wandb"]),
        ("wandb,mlflow", ["wandb", "mlflow"]),
        ("[tensorboard, mlflow, wandb]", ["mlflow", "wandb"]),
    ],
)
def test_services_are_a_word_or_a_list(given: str, found: list[str]) -> None:
    config, _ = parse_command_line(["--data.train=here", f"--track.to={given}"])
    assert config.track.services == found
    assert config.track.to == ["tensorboard", *found], "the event file is always written"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"to": "wandbb"}, r"track\.to takes tensorboard, wandb, mlflow, not 'wandbb'"),
        ({"to": ""}, r"track\.to takes .*, not ''"),
        ({"project": "a'b"}, r"track\.project takes up to 100 letters"),
        ({"project": ""}, r"track\.project takes up to 100 letters"),
        ({"norms_every": -1}, r"track\.norms_every must not be negative, but is -1"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrackConfig(**settings).validate()  # type: ignore[arg-type]


def test_a_record_of_an_earlier_version_has_the_same_settings() -> None:
    now = dump(Config())
    before = {section: dict(keys) for section, keys in now.items() if section != "track"}
    del before["train"]["profile"]
    assert in_todays_form(before) == now
    assert not is_fixed("track.to")
    assert not is_fixed("train.profile")
