"""Checkpoints written in the background hold what the run had when they were saved."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from support import LIMIT, features, same_bits_or_close, small_model, utterances

from awtpn.distributed.engines.single import SINGLE
from awtpn.distributed.host_copies import HostCopies
from awtpn.learning.optimizer import make_optimizer
from awtpn.learning.settings import OptimConfig
from awtpn.model.files import WEIGHTS_FILE, find_corruption, read_weights
from awtpn.run import checkpoint
from awtpn.run.checkpoint_writer import CheckpointWriter
from awtpn.run.position import Position


def test_a_copy_keeps_its_memory_and_its_values() -> None:
    copies, tensor = HostCopies(), torch.arange(6, dtype=torch.bfloat16)
    first = copies.add("a", tensor, (2, 3), torch.float32)
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    tensor += 1
    assert first.tolist() == [[0, 1, 2], [3, 4, 5]]
    copies.wait()
    second = copies.add("a", tensor, (2, 3), torch.float32)
    assert second.data_ptr() == first.data_ptr()
    assert second.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert copies.add("a", tensor, (6,), None).dtype == torch.bfloat16


def test_one_checkpoint_is_written_at_a_time() -> None:
    writer, go = CheckpointWriter(), threading.Event()
    writer.start(lambda: None if go.wait(LIMIT) else "not released")
    with pytest.raises(AssertionError, match="being written already"):
        writer.start(lambda: None)
    go.set()
    assert writer.wait() is None
    writer.start(lambda: "a full disk")
    assert writer.wait() == "a full disk"


def test_an_unexpected_error_is_a_failure() -> None:
    def write() -> str | None:
        raise KeyError("x")

    writer = CheckpointWriter()
    writer.start(write)
    assert writer.wait() == "KeyError: 'x'"


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(dtype=torch.float32)
    optimizer = make_optimizer(model, OptimConfig(lr=0.1))
    batch = features(utterances([(3, 2), (4, 5)], dtype=torch.float32))

    def step() -> None:
        model(batch).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reached, go, whole_print = threading.Event(), threading.Event(), checkpoint._fingerprint

    def slow_print(path: Path) -> object:
        reached.set()
        assert go.wait(LIMIT)
        return whole_print(path)

    monkeypatch.setattr(checkpoint, "_fingerprint", slow_print)
    writer = CheckpointWriter()
    contents = checkpoint.gather(
        model, optimizer, Position(step=1), model.card(), True, SINGLE, writer.copies
    )
    assert contents is not None

    def write() -> None:
        checkpoint.write(tmp_path, contents)

    writer.start(write)
    assert reached.wait(LIMIT)
    step()
    assert not (tmp_path / "latest").exists()
    go.set()
    assert writer.wait() is None
    folder = checkpoint.find_latest(tmp_path)
    assert folder is not None
    assert find_corruption(folder) is None
    for name, tensor in read_weights(folder / WEIGHTS_FILE).items():
        assert same_bits_or_close(tensor, before[name]), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
