"""What a run on a demo shows at its end: an utterance's weights as text, and commands that exist."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from awtpn.config.command_line import parse_command_line
from awtpn.config.settings import DEMOS
from awtpn.model.models import build_model
from awtpn.model.settings import ModelConfig
from awtpn.training import demo_tour
from awtpn.training.demo_tour import (
    BARS,
    PLAIN_BARS,
    bars_for,
    command_lines,
    show_tour,
    utterance_lines,
    weight_lines,
)
from shards import FeatureStream, pack
from shards.sources import demo


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> FeatureStream:
    source = demo.samples(0, train=16, val=0, test=8)
    folder = str(tmp_path_factory.mktemp("demo") / "d")
    pack(source.samples, folder, classes=source.classes, provenance=source.provenance, progress=False)
    return FeatureStream(folder, split="test", shuffle=False)


def test_bars_are_shares_of_the_largest_weight() -> None:
    weights = {
        "audio": np.array([0.0, 0.1, 0.8, 0.05], np.float32),
        "face": np.array([0.5, 0.5], np.float32),
        "text": np.zeros(0, np.float32),
    }
    assert weight_lines(weights, {"audio": [2], "face": [0, 1], "text": []}, BARS) == [
        "  audio   ▁█▁",
        "           ^",
        "  face   ██",
        "         ^^",
        "  text",
        "",
    ]


def test_a_terminal_without_unicode_gets_other_bars() -> None:
    assert [bars_for(name) for name in ("utf-8", "UTF-8", "utf-16")] == [BARS] * 3
    assert [bars_for(name) for name in ("ascii", "latin-1", "cp1252", None, "no such")] == [PLAIN_BARS] * 5
    assert len(PLAIN_BARS) == len(BARS)
    assert PLAIN_BARS.isascii()


def test_the_utterance_is_one_that_the_model_recognizes(stream: FeatureStream) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(shared_dim=8), demo.DIMS, stream.classes).eval()
    with torch.no_grad():
        batch = next(iter(stream.epoch(0)))
        right = model(batch.features).logits.argmax(1) == batch.label
    assert 0 < int(right.sum()) < len(batch), "some are recognized by chance"
    key = batch.key[int(right.int().argmax())]
    head, legend, audio, below, *_ = utterance_lines(model, stream, PLAIN_BARS)
    assert head.startswith(f"what the weights found in {key} ({stream.classes[int(batch.label[right][0])]}; ")
    assert legend == "a bar for each time step, and ^ below those that carry the truth"
    meta = dict(stream.metadata())[key]
    steps = batch.features["audio"].host_lengths[batch.key.index(key)]
    assert len(audio) == len("  audio  ") + steps
    marked = [at - len("  audio  ") for at, letter in enumerate(below) if letter == "^"]
    assert marked == meta["informative_audio"]


def test_a_model_without_weights_has_no_picture(stream: FeatureStream) -> None:
    model = build_model(ModelConfig(name="late-fusion", shared_dim=8), demo.DIMS, stream.classes).eval()
    assert utterance_lines(model, stream, BARS) == []


def test_the_commands_are_of_the_run_and_its_demo() -> None:
    lines = command_lines(Path("my runs/a"), "demo-values")
    assert lines[0].startswith("  awtpn train --config demo-values --model.awm uniform ")
    assert lines[1].startswith("  tensorboard --logdir 'my runs' ")
    assert command_lines(Path("runs/a"), "demo")[0].startswith("  awtpn train --model.awm uniform ")


@pytest.mark.parametrize("name", DEMOS)
def test_the_first_command_trains_on_the_same_demo(name: str) -> None:
    words = command_lines(Path("runs/a"), name)[0].split("  ")[1].split()
    assert words[:2] == ["awtpn", "train"]
    config, _ = parse_command_line(words[2:])
    assert config.data.train == name
    assert config.model.awm == "uniform"


def test_a_model_of_recordings_can_be_served() -> None:
    served = {name for name in DEMOS if "awtpn serve runs/a " in str(command_lines(Path("runs/a"), name))}
    assert served == {"demo-recordings"}


def test_a_run_whose_report_cannot_be_written_is_still_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_tour, "load_model", None)
    show_tour(tmp_path / "gone", "demo", None)
    told = capsys.readouterr().out
    assert told.startswith("no report: ")
    assert "gone" in told.splitlines()[0]
    assert "next:" in told
