"""What is mistyped is answered by what was meant, in every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from awtpn.cli import main
from awtpn.experiments import ablation, crossvalidation

OF_PACK = (
    "usage: awtpn pack --format FORMAT SOURCE OUT [--OPTION VALUE ...] (awtpn pack --help lists the options)"
)
OF_EVALUATE = "usage: awtpn evaluate MODEL [--OPTION VALUE ...] (awtpn evaluate --help lists the options)"


def told(words: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr of a command that is refused."""
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return str(err).splitlines()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("trian", "awtpn has no command trian; did you mean train? (awtpn --help lists all)"),
        ("cross_validate --by fold", "awtpn has no command cross_validate; did you mean cross-validate?"),
        (
            "shards inof",
            "awtpn shards has no action inof; did you mean info? (awtpn shards --help lists all)",
        ),
        ("nothing", "awtpn has no command nothing; there are init, pack, "),
        ("--versoin", "there is no --versoin; did you mean --version?"),
    ],
)
def test_commands(words: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    [line] = told(words, capsys)
    assert line.startswith(f"error: {answer}")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--fromat npz a b", "there is no --fromat; did you mean --format?"),
        ("--fromat=npz a b", "there is no --fromat; did you mean --format?"),
        (
            "a b --format npx",
            "--format takes dataset, demo, mmsa, mosei, npz, reference, synthetic, table, iemocap or meld, "
            "not npx; did you mean npz?",
        ),
        ("a", "OUT and --format are missing"),
        ("a b", "--format is missing"),
        ("a b c --format npz", "c is one word too many"),
        ("a b --format npz --dtype fp8", "--dtype takes float16, float32 or int8, not fp8"),
        ("a b --format npz --whatever", "there is no --whatever"),
        ("a b --format npz --storage_options fold=3", "--storage_options: what is given is no JSON object; "),
        ("a b --format", "--format needs a value"),
    ],
)
def test_options(words: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    line, usage = told(f"pack {words}", capsys)
    assert line.startswith(f"error: {answer}")
    assert usage == OF_PACK


@pytest.mark.parametrize(
    ("words", "answer", "command"),
    [
        ("predict m d --outt x", "there is no --outt; did you mean --out?", "awtpn predict MODEL INPUT"),
        (
            "extract a b --fromat x",
            "there is no --fromat; did you mean --format?",
            "awtpn extract SOURCE OUT",
        ),
        ("shards preview d -x 3", "there is no -x", "awtpn shards preview URL"),
        (
            "shards simulate d --node 2",
            "--gpus-per-node and --global-batch are missing",  # argparse takes the beginning of --nodes
            "awtpn shards simulate --nodes N --gpus-per-node N --global-batch N URL",
        ),
        ("bench --rounds x", "--rounds takes a whole number, not x", "awtpn bench"),
        ("doctor --memry x", "there is no --memry; did you mean --memory?", "awtpn doctor"),
        ("export a", "DIR is missing", "awtpn export RUN DIR"),
        ("ablate --seeds x", "--seeds takes a whole number, not x", "awtpn ablate"),
    ],
)
def test_every_command(words: str, answer: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line, usage = told(words, capsys)
    assert line == f"error: {answer}"
    assert usage.startswith(f"usage: {command} [--OPTION VALUE ...]")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("cross-validate --sedes 1", "there is no --sedes; did you mean --seeds? "),
        ("cross-validate --by fold --optim.rl 1", "there is no --optim.rl; did you mean --optim.lr? "),
        ("cross-validate --sweep a=1 --epochs 3", "there is no --epochs; did you mean --train.epochs? "),
        ("cross-validate --conifg x", "there is no --conifg; did you mean --config? "),
        ("ablate --onyl x", "there is no --onyl; did you mean --only? "),
        ("ablate --train.epochs many", "train.epochs takes a whole number or null, not many"),
        ("doctor --memory configs/demo.yaml --rank 8", "there is no --rank; did you mean --ranks? "),
        ("train --train.epoch 3", "there is no --train.epoch; did you mean --train.epochs? "),
    ],
)
def test_keys_of_training(
    words: str,
    answer: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for module in (ablation, crossvalidation):
        monkeypatch.setattr(module, "train_all", lambda *_, **__: pytest.fail("a run started"))
    [line] = told(words, capsys)
    assert line.startswith(f"error: {answer}")


def test_a_model_to_evaluate_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    both = "error: MODEL is runs/a and --checkpoint is runs/b: give only one of them"
    assert told("evaluate runs/a --checkpoint runs/b", capsys) == [both, OF_EVALUATE]
    assert told("evaluate", capsys) == ["error: MODEL is missing", OF_EVALUATE]


@pytest.mark.parametrize("words", [["runs/a"], ["--checkpoint", "runs/a"]])
def test_a_model_is_named_by_its_place_or_by_the_option(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr("awtpn.training.evaluate.evaluate_command", found.append)
    main(["evaluate", *words, "--split", "val"])
    assert [(str(options.checkpoint), options.split) for options in found] == [("runs/a", "val")]
