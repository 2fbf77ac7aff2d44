"""Mistakes in a configuration file are told with the file, the line and what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from awtpn.config.command_line import parse_command_line
from awtpn.config.errors import keys_of
from awtpn.config.schema import Config
from awtpn.config.suggestions import nearest
from awtpn.experiments.ablation import read_variants
from awtpn.run import record


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("data.trian", "data.train"),
        ("data.select.trian", "data.select.train or data.select.val"),
        ("trian.epochs", "train.epochs"),
        ("epochs", "train.epochs"),
        ("train.lr", "optim.lr"),
        ("train", "data.train or data.select.train"),
        ("batch", "train.micro_batch_size or train.global_batch_size"),
    ],
)
def test_the_key_that_was_meant_is_named(key: str, meant: str) -> None:
    assert nearest(key, keys_of(Config)) == f"; did you mean {meant}? (--help lists all keys)"


def test_a_key_like_no_other_is_answered_with_its_section() -> None:
    told = nearest("optim.learning_rate", keys_of(Config))
    assert told.startswith("; optim has lr, weight_decay, ")
    assert nearest("foo", keys_of(Config)) == " (--help lists all keys)"


def bomb(level: str, levels: int = 27) -> bytes:
    """Options that stand for 6 to the power of `levels` values, in few bytes."""
    lines = ["data:", "  storage_options:", "    a0: &a0 [x]"]
    lines += [f"    a{n}: &a{n} {level.format(', '.join([f'*a{n - 1}'] * 6))}" for n in range(1, levels + 1)]
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (
            b"train:\n  epochs: 3\n  epoch: 4\n",
            ", line 3: there is no train.epoch; did you mean train.epochs? ",
        ),
        (b"# mine\noptimizer:\n  lr: 1\n", ", line 2: there is no optimizer; did you mean optim? "),
        (b"optim:\n  lr: 1e-3\n  lr: 5\n", ", line 3: optim.lr is there twice, already in line 2"),
        (b"optim: {lr: 1}\noptim.lr: 2\n", ", line 2: optim.lr is there twice, already in line 1"),
        (b"data: {select: {val: {fold: 1, fold: 2}}}", ", line 1: data.select.val.fold is there twice"),
        (b"optim:\n\tlr: 1\n", ", line 2: no YAML: indent with spaces, not with tabs"),
        (b"optim: [1\n", ", line 2: no YAML: expected ',' or ']', but got '<stream end>'"),
        (b"optim: 3\n", ", line 1: optim is a section: write its keys below it, indented"),
        (b"- a\n- b\n", ", line 1: write SECTION: and below it, indented, KEY: VALUE"),
        (b"\x89PNG\r\n", ": no YAML but binary data; --config takes a text file"),
        (b"\0\0", ": no YAML but binary data; --config takes a text file"),
        (b"train:\n  epochs: many\n", ", line 2: train.epochs takes a whole number or null, not many"),
        (bomb("[{}]"), ": its aliases stand for more than 100,000 values; write fewer"),
        (bomb("{{x: [{}]}}"), ": its aliases stand for more than 100,000 values; write fewer"),
        (b"data: {storage_options: &a {b: *a}}", ": is nested too deeply, or contains itself"),
        (None, ": no such file; --config takes a YAML file"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(
    content: bytes | None, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        parse_command_line(["--config", str(file)])
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {file}{answer}")
    assert told.count("\n") == 1


@pytest.mark.parametrize("content", ["", "# nothing\n", "train:\n", "data:\n  select:\noptim: {}\n"])
def test_empty_files_and_sections_mean_the_defaults(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    assert parse_command_line([f"--config={tmp_path / 'c.yaml'}"])[0] == Config()


def test_a_wrong_word_after_a_file_is_not_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("train:\n  epochs: 3\n")
    with pytest.raises(SystemExit):
        parse_command_line(["--config", str(tmp_path / "c.yaml"), "--train.epochs", "many"])
    assert capsys.readouterr().err == "error: train.epochs takes a whole number or null, not many\n"


@pytest.mark.parametrize("joined", [True, False])
def test_aliases_on_the_command_line_are_counted(joined: bool, capsys: pytest.CaptureFixture[str]) -> None:
    levels = ["a0: &a0 [x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 6)}]" for n in range(1, 28)]
    option, value = "--data.storage_options", f"{{{', '.join(levels)}}}"
    with pytest.raises(SystemExit):
        parse_command_line([f"{option}={value}"] if joined else [f"{option}.x", value])
    told = capsys.readouterr().err
    assert told.startswith(f"error: {option}")
    assert told.endswith(": its aliases stand for more than 100,000 values; write fewer\n")


def test_other_yaml_files_have_bounded_aliases_too(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(bomb("[{}]"))
    with pytest.raises(ValueError, match="is not the record of a run's settings"):
        record.read_settings(tmp_path)
    with pytest.raises(ValueError, match=r"config\.yaml is not YAML: its aliases stand for more than"):
        read_variants(tmp_path / "config.yaml")


def test_aliases_of_a_usual_number_are_taken(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(bomb("[{}]", levels=2))
    options = parse_command_line([f"--config={tmp_path / 'c.yaml'}"])[0].data.storage_options
    assert options is not None
    assert options["a2"] == [[["x"]] * 6] * 6
