"""Files that come with this project are found by name, and a name or path that is no file is answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import REPO

from awtpn.config.command_line import make_parser, parse_command_line
from awtpn.config.project_files import ROOT, checkout, find_file, packaged_files, shared_files
from awtpn.experiments.ablation import read_variants

NAMES = [
    *("demo", "demo-labels", "demo-values", "finetune", "finetune-demo", "finetune-ravdess"),
    *("iemocap", "iemocap-vad", "large"),
    *("meld", "meld-text", "mosei", "mosei-emotions", "mosei-sentiment", "ravdess", "reference"),
]


def test_a_checkout_has_its_folders_beside_the_packages() -> None:
    assert checkout() == ROOT == REPO
    names = shared_files()
    assert {"configs/demo.yaml", "configs/deepspeed/zero2.json", "launch/train.py"} <= names.keys()
    assert not any("__" in name for name in names)


def test_a_name_stands_for_a_packaged_file() -> None:
    assert list(packaged_files("--config")) == NAMES, "not the variants of ablations"
    assert parse_command_line(["--config", "meld"])[0].data.train == "data/meld"
    assert parse_command_line(["--config=meld"]) == parse_command_line(["--config", "configs/meld.yaml"])
    _, launch = parse_command_line(["--deepspeed", "zero2"])
    assert launch.deepspeed_file == str(REPO / "configs" / "deepspeed" / "zero2.json")
    assert read_variants(Path("ablations")) == read_variants()


def test_an_existing_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meld").mkdir()
    assert find_file("meld", "--config") == REPO / "configs" / "meld.yaml", "a folder is no configuration"
    (tmp_path / "demo").write_text("data: {train: mine}\n")
    assert find_file("demo", "--config") == Path("demo")
    assert parse_command_line(["--config", "demo"])[0].data.train == "mine"


@pytest.mark.parametrize(
    ("option", "given", "answer"),
    [
        ("--config", "configs/meld.yaml", "did you mean --config meld, which comes with awtpn? ("),
        ("--config", "medl", "did you mean --config meld?"),
        ("--config", "mine/corpus.yml", "did you mean --config mine/corpora.yml?"),
        ("--config", "nothing/like", "--config takes a YAML file, or the name of one that comes "),
        ("--deepspeed", "zero4", "did you mean --deepspeed zero1 or zero2 or zero3?"),
        ("--deepspeed", "ds_config.json", "--deepspeed takes a JSON file, or the name of one that "),
        ("--variants", "ablation", "did you mean --variants ablations?"),
    ],
)
def test_a_missing_file_is_answered_with_what_there_is(
    option: str, given: str, answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "corpora.yml").touch()
    with pytest.raises(ValueError, match="no such file") as caught:
        find_file(given, option)
    assert str(caught.value).startswith(f"{given}: no such file; {answer}")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r": a folder; --config takes a YAML file"):
        find_file(tmp_path, "--config")


def test_help_lists_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # lines are broken at hyphens
    text = " ".join(make_parser().format_help().split())
    assert f"or a name: {', '.join(NAMES)}" in text
    assert "or a name: zero1, zero2, zero3" in text
