"""The usual mistakes are answered in a line that says what to do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fsspec.registry import _registry
from support import small_model

from awtpn import Predictor, checkpoint
from awtpn.cli import main
from awtpn.device import usable
from awtpn.optim import OptimConfig, make_optimizer
from shards.store import open_store


def answer(*words: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return str(stop.value.code)


@pytest.mark.parametrize("words", [[], ["shards"]])
def test_without_a_command_they_are_listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    assert {"usage:", "preview" if words else "predict"} <= set(capsys.readouterr().out.split())


def test_what_is_no_dataset(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    fix = "give the URL of a packed dataset's folder (was its packing interrupted?), or index the tars there"
    assert answer("shards", "info", tmp_path) == (
        f"error: {manifest}: no such file; {fix} with `awtpn shards index`"
    )


def test_what_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("fold=3", "[1]"):
        assert answer("shards", "info", "x", "--storage_options", text) == "2"
        assert f"'{text}' is no JSON object; write e.g. '{{\"name\": \"value\"}}'" in capsys.readouterr().err


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    # fsspec keeps what another test has imported.
    monkeypatch.delitem(sys.modules, "fsspec.implementations.sftp", raising=False)
    monkeypatch.delitem(_registry, "sftp", raising=False)
    with pytest.raises(ValueError, match=r'cannot open: .*; pip install "awtpn-at-scale\[sftp\]"$'):
        open_store("sftp://nowhere/corpus")


def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    small_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="device gpu: no such kind of device; write cpu, cuda or cuda:1"):
        Predictor.from_pretrained(tmp_path / "model", "gpu")
    with pytest.raises(ValueError, match=r"device cuda:99: PyTorch sees \d+ GPUs here"):
        usable("cuda:99")
    assert usable("cpu") == torch.device("cpu")


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    model = small_model(dtype=torch.float32, shared_dim=16)
    folder = checkpoint.save(
        tmp_path,
        model,
        make_optimizer(model, OptimConfig()),
        checkpoint.Position(),
        model.card(),
        is_main=True,
    )
    told = r"is of another model: \S+ is \(16, .* there, and \(8, .* choose another run\.dir"
    with pytest.raises(ValueError, match=told):
        checkpoint.load_weights(folder, small_model(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"awm\.audio\.key is \(16, 16\) there, and missing by"):
        checkpoint.load_weights(folder, small_model(dtype=torch.float32, shared_dim=16, awm="uniform"))
