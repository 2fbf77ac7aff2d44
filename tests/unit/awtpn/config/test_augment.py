"""The section `augment`: off in runs of earlier versions, and fixed for the length of a run."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config, dump, dump_yaml, in_todays_form
from awtpn.learning.settings import AugmentConfig
from awtpn.run.folder import FIXED_KEYS, changed_keys
from awtpn.run.record import CONFIG_FILE

WORDS = ["--data.train=here", "--augment.noise_snr=[5, 20]", "--augment.drop_time=2"]


def test_it_is_off_by_default() -> None:
    assert Config().augment.keys_in_use() == []


def test_keys_are_read_from_a_file_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("augment:\n  crop: [0.5, 1]\n  gain: [-6, 6]\n  flip: 1e-1\n")
    config, _ = parse_command_line(["--config", str(tmp_path / "c.yaml"), *WORDS, "--augment.gain=null"])
    assert config.augment == AugmentConfig(crop=[0.5, 1.0], noise_snr=[5.0, 20.0], drop_time=2, flip=0.1)
    assert config.augment.keys_in_use() == ["crop", "noise_snr", "drop_time", "flip"]
    (tmp_path / CONFIG_FILE).write_text(dump_yaml(config))
    assert changed_keys(config, tmp_path) == []
    assert parse_command_line(["--config", str(tmp_path / CONFIG_FILE)])[0].augment == config.augment


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("--augment.noise_snr=20", r"augment\.noise_snr takes a list"),
        ("--augment.nose_snr=[1,2]", r"did you mean --augment\.noise_snr\?"),
        ("--augment.drop_time=1.5", r"augment\.drop_time takes a whole number"),
    ],
)
def test_a_mistake_is_refused_by_name(word: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_command_line(["--data.train=here", word])
    assert re.search(error, capsys.readouterr().err)


def test_a_range_is_checked_where_the_configuration_is_read() -> None:
    with pytest.raises(ValueError, match=r"augment\.crop takes a range"):
        parse_command_line(["--data.train=here", "--augment.crop=[0.9, 0.5]"])


def test_a_run_of_an_earlier_version_had_none(tmp_path: Path) -> None:
    plain, augmented = (parse_command_line(words)[0] for words in (WORDS[:1], WORDS))
    recorded = dump(plain)
    del recorded["augment"]
    assert in_todays_form(recorded) == dump(plain)
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(recorded))
    assert changed_keys(plain, tmp_path) == []
    assert changed_keys(augmented, tmp_path) == ["augment.noise_snr", "augment.drop_time"]
    assert all(key.startswith(FIXED_KEYS) for key in changed_keys(augmented, tmp_path))
    # A key that a later version adds is off, too.
    recorded["augment"] = {"flip": 0.5}
    assert in_todays_form(recorded)["augment"] == asdict(AugmentConfig(flip=0.5))
