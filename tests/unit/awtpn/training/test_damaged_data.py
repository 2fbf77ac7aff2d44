"""Utterances that a run leaves out are counted once, told of by shard, and bounded."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from step_support import make_run
from support import ALONE, batch, small_model, utterances

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config
from awtpn.learning.optimizer import make_optimizer
from awtpn.run.data import evaluation_stream, open_training_stream
from awtpn.run.position import Position
from awtpn.training.damaged_data import account_for_damaged
from awtpn.training.step import train_step
from shards import FeatureStream

URL = "s3://bucket/corpus"


def test_each_counts_once_and_each_shard_is_told_of_once() -> None:
    told: dict[str, str] = {}
    position = Position(damaged=["a"])  # by an earlier start
    first = account_for_damaged({"a": "x.tar: gone", "b": "x.tar: gone"}, told, position, 3, URL)
    assert first == ["x.tar: gone: left out: a, b"]
    assert position.damaged == ["a", "b"]
    assert account_for_damaged({"c": "x.tar: gone", "a": "x.tar: gone"}, told, position, 3, URL) == []
    assert position.damaged == ["a", "b", "c"]


def test_more_than_the_budget_are_refused_with_names_and_fix() -> None:
    told, position = {"a": "x.tar: gone"}, Position(damaged=["a"])
    found = {f"k{i}": f"y{i % 12}.tar: cut short" for i in range(24)} | {
        f"z{i}": "z.tar: bad" for i in range(9)
    }
    with pytest.raises(ValueError, match=r"34 training utterances .* data.damaged_budget 33:\n") as caught:
        account_for_damaged(found, told, position, 33, URL)
    text = str(caught.value)
    assert "\nx.tar: gone: a\ny0.tar: cut short: k0, k12\n" in text
    assert "\nand 6 more causes\n" in text
    assert f"`awtpn shards verify {URL}`" in text
    with pytest.raises(ValueError, match=r"z\.tar: bad: z0, z1, z2, z3, z4, z5, z6, z7 and 1 more"):
        account_for_damaged({k: v for k, v in found.items() if k[0] == "z"}, {}, Position(), 8, URL)


def cut(corpus: str, folder: Path, split: str) -> tuple[str, int]:
    """A copy of a corpus with a shard of a split cut short, and how many utterances that has."""
    shutil.copytree(corpus, folder)
    entry = FeatureStream(str(folder), split).manifest.splits[split].shards[0]
    os.truncate(folder / entry.name, 1000)
    return str(folder), entry.utterances


def test_training_may_do_without_but_no_evaluation_does(corpus: str, tmp_path: Path) -> None:
    config = Config()
    config.data.train, lost = cut(corpus, tmp_path / "train", "train")
    with pytest.raises(ValueError, match=r"\.tar: 1000 bytes"):
        list(open_training_stream(config, ALONE, Position()).epoch(0))
    config.data.damaged_budget = 1
    assert sum(len(b.damaged) for b in open_training_stream(config, ALONE, Position()).epoch(0)) == lost
    config.data.train, _ = cut(corpus, tmp_path / "val", "val")
    val = evaluation_stream(config.data, "val", ["audio", "video"], ALONE)
    assert val is not None
    with pytest.raises(ValueError, match=r"val-000000\.tar: 1000 bytes"):
        list(val.epoch(0))


def test_a_flipped_bit_is_seen_in_training_and_evaluation(corpus: str, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "c")
    for split in ("train", "val"):
        entry = FeatureStream(corpus, split).manifest.splits[split].shards[0]
        with np.load(tmp_path / "c" / entry.index) as index:
            at = int(index["offset.video"].max())
        content = bytearray((tmp_path / "c" / entry.name).read_bytes())
        content[at] ^= 1
        (tmp_path / "c" / entry.name).write_bytes(content)
    config = Config()
    config.data.train = str(tmp_path / "c")
    for check in (False, True):
        config.data.check_crc = check
        for stream in (
            open_training_stream(config, ALONE, Position()),
            evaluation_stream(config.data, "val", ["audio", "video"], ALONE),
        ):
            assert stream is not None
            with pytest.raises(ValueError, match="is not that of the index") if check else nullcontext():
                list(stream.epoch(0))


@pytest.mark.parametrize("negatives", ["group", "global", "reference"])
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_a_step_without_any_utterance_moves_nothing(negatives: str, update: str) -> None:
    config = Config()
    config.loss.negatives, config.loss.negative_group = negatives, 2  # type: ignore[assignment]
    config.prototypes.update = update  # type: ignore[assignment]
    config.optim.weight_decay, config.loss.class_weights = 0.0, "balanced"
    model = small_model(dtype=torch.float32, learnable=update == "gradient")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accelerator = SimpleNamespace(backward=lambda loss: loss.backward(), unscale_gradients=lambda: None)
    optimizer = make_optimizer(model, config.optim)
    run = make_run(config, model, optimizer, accelerator, torch.device("cpu"), global_batch=4)
    nothing = replace(batch(utterances([], dtype=torch.float32), [], num_places=4), damaged={"a": "gone"})
    facts = train_step(run, nothing, data_wait=0.0)
    assert facts.utterances == facts.fingerprint == 0
    assert (run.pending[0]["terms"] == 0).all()
    assert run.pending[0]["grad_norm"] == 0
    assert run.pending[0]["damaged"] == {"a": "gone"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.damaged_budget must not be negative, but is -1"):
        parse_command_line(["--data.damaged_budget", "-1"])[0].validate()
