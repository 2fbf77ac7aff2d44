"""A command is recorded as it was typed, and started again in a form that launchers take."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import pytest
from support import REPO

from awtpn.cli import main, without_rank
from awtpn.config.program import AWTPN, MODULE, started_as
from awtpn.distributed import accelerate_launch
from awtpn.experiments import crossvalidation

SCRIPTS = {
    "train": "train",
    "evaluate": "evaluate",
    "cross_validate": "cross-validate",
    "ablate": "ablate",
}


@pytest.mark.parametrize(
    ("typed", "recorded", "name", "for_python"),
    [
        (AWTPN, "awtpn train", "awtpn train", "-m awtpn.cli train"),
        (MODULE, "python -m awtpn.cli train", "awtpn train", "-m awtpn.cli train"),
        (("python", "launch/train.py"), "python launch/train.py", "train.py", "launch/train.py"),
    ],
)
def test_the_forms_of_a_program(typed: tuple[str, ...], recorded: str, name: str, for_python: str) -> None:
    program = started_as(typed, "train")
    assert " ".join(program.typed) == recorded
    assert program.name == name
    assert " ".join(program.for_python) == for_python


@pytest.mark.parametrize(("script", "command"), SCRIPTS.items())
def test_a_script_is_the_command(
    script: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = f"launch/{script}.py"
    shown = []
    for argv in ([file, "--help"], ["awtpn", command, "--help"]):
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(file, run_name="__main__") if argv[0] == file else main()
        assert stop.value.code in (0, None)
        shown.append(capsys.readouterr().out)
    of_script, of_command = shown
    assert of_script.startswith(f"usage: {script}.py ")
    assert of_command.startswith(f"usage: awtpn {command} ")
    assert f"\n  python {file}" in of_script.replace("\n    ", "\n  "), "the example is to be typed"
    assert f"\n  awtpn {command}" in of_command.replace("\n    ", "\n  ")


@pytest.mark.parametrize(
    ("how", "recorded"),
    [
        ({}, "awtpn cross-validate"),
        ({"program": MODULE}, "python -m awtpn.cli cross-validate"),
        ({"script": "launch/cross_validate.py"}, "python launch/cross_validate.py"),
    ],
)
def test_an_experiment_is_recorded_as_it_was_typed(
    how: dict[str, Any], recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(
        crossvalidation, "cross_validate", lambda *given, **named: found.append((given, named))
    )
    main(["cross-validate", "--by", "fold", "--optim.lr", "1", "--seeds", "3"], **how)
    [((training, by, seeds, _), named)] = found
    assert (training, by, seeds) == (["--optim.lr", "1"], "fold", [3])
    assert named["command"] == f"{recorded} --by fold --optim.lr 1 --seeds 3"
    assert named["baseline"] is None, "the default: where there are folds"


@pytest.mark.parametrize(("option", "given"), [("--baseline", True), ("--no-baseline", False)])
def test_a_baseline_is_fitted_or_left_out(option: str, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setattr(crossvalidation, "cross_validate", lambda *_, **named: found.append(named))
    main(["cross-validate", option, "--optim.lr", "1"])
    assert [named["baseline"] for named in found] == [given]
    monkeypatch.setattr(crossvalidation, "print_baseline", lambda *words: found.append(words))
    main(["cross-validate", "--baseline_only", "--by", "fold", "--optim.lr", "1"])
    assert found[1:] == [(["--optim.lr", "1"], "fold")]


@pytest.mark.parametrize(
    ("command", "how", "again"),
    [
        ("train", {}, "-m awtpn.cli train"),
        ("train", {"program": MODULE}, "-m awtpn.cli train"),
        ("train", {"script": "launch/train.py"}, "launch/train.py"),
        ("evaluate", {}, "-m awtpn.cli evaluate"),
        ("evaluate", {"script": "launch/evaluate.py"}, "launch/evaluate.py"),
    ],
)
def test_missing_ranks_start_the_same_program(
    command: str, how: dict[str, Any], again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """See `start_missing_ranks`: torchrun takes the place of this process."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(accelerate_launch, "asked_of_accelerate", lambda: accelerate_launch.Asked(2, 1, None))

    def replace(_: str, argv: list[str], __: object) -> None:
        raise SystemExit(" ".join(argv[1:]))

    monkeypatch.setattr(os, "execve", replace)
    words = ["--run.dir", "runs/a"] if command == "train" else ["runs/a"]
    with pytest.raises(SystemExit) as end:
        main([command, *words], **how)
    told = f"-m torch.distributed.run --standalone --nproc-per-node=2 {again} {' '.join(words)}"
    assert end.value.code == told


def test_deepspeed_puts_the_rank_before_the_command() -> None:
    assert without_rank(["--local_rank=1", "train", "--a", "b"]) == ["train", "--local_rank=1", "--a", "b"]
    assert without_rank(["--local_rank=1", "evaluate", "runs/a"]) == ["evaluate", "runs/a"]
    assert without_rank(["--local_rank=0"]) == []
    assert without_rank(["train", "--local_rank=1"]) == ["train", "--local_rank=1"]
    assert without_rank([]) == []
