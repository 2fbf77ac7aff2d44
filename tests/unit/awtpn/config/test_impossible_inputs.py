"""Settings, paths and variables that no run can have are refused by name, before anything is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import small_model

from awtpn.config.command_line import parse_command_line
from awtpn.config.entry_point import run_command
from awtpn.config.schema import Config
from awtpn.distributed.accelerate_launch import check_environment
from awtpn.inference.export import export
from awtpn.model.files import CARD_FILE
from awtpn.model.network import AWTPN
from awtpn.run.folder import check_folder
from shards.storage.local_path import local_path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.threads", 100_000),
        ("train.timeout", 1e300),
        ("run.seed", 10**22),
        ("model.shared_dim", 99_999_999_999),
        ("model.prototypes_per_class", 10**9),
    ],
)
def test_settings_beyond_any_machine_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        parse_command_line(["--data.train=here", f"--{key}={value}"])


@pytest.mark.parametrize(("name", "value"), [("WORLD_SIZE", "0"), ("LOCAL_WORLD_SIZE", "0"), ("RANK", "-1")])
def test_variables_of_launchers_that_count_nothing(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    check_environment()
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name} is '{value}'"):
        check_environment()


def test_a_card_of_integers_beyond_floats_is_refused(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "checksums.json").unlink()
    card = json.loads((tmp_path / "m" / CARD_FILE).read_text())
    card["model"]["alpha_audio"] = 10**30
    (tmp_path / "m" / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(ValueError, match="alpha_audio"):
        AWTPN.from_pretrained(tmp_path / "m")


def test_a_run_folder_is_no_model_and_no_link_to_nothing(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match=r"holds a model .*run\.init_from"):
        check_folder(Config(), tmp_path / "m")
    for name, target in (("loop", "loop"), ("gone", "nowhere")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ValueError, match=f"run\\.dir .*{name} is a link to nothing"):
            check_folder(Config(), tmp_path / name)


def test_an_export_to_a_link_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path / "m")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(ValueError, match="exists already"):
        export(tmp_path / "m", tmp_path / "gone")
    assert {path.name for path in tmp_path.iterdir()} == {"m", "gone"}


def test_a_file_url_needs_its_slashes() -> None:
    with pytest.raises(ValueError, match="write file:///ABSOLUTE/PATH"):
        local_path("file:runs/one", "run.dir")


def test_the_printed_configuration_shows_no_secret_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = "{secret: s3kr1tPW99, client_kwargs: {aws_session_token: t0kenTOKEN}}"
    (tmp_path / "c.yaml").write_text(f"data: {{train: here, storage_options: {secrets}}}\n")
    words = ["--config", str(tmp_path / "c.yaml"), "--print_config"]
    with pytest.raises(SystemExit):
        run_command(parse_command_line, words)
    shown = capsys.readouterr().out
    assert "storage_options" in shown
    assert "s3kr1tPW99" not in shown
    assert "t0kenTOKEN" not in shown
