"""Threads that share a micro-batch change nothing but speed; what is free decides how many there are."""

from __future__ import annotations

import itertools
import json
import math
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from support import ALONE, DIMS, LIMIT, REPO, batch, environment, small_model, utterances
from torch import Tensor

from awtpn.config.schema import Config
from awtpn.distributed import cpu_threads
from awtpn.distributed.batch_layout import Layout, make_layout
from awtpn.distributed.cpu_threads import (
    ONE_PIECE,
    balanced_edges,
    choose_threads,
    forward_in_pieces,
    make_piece_threads,
)
from awtpn.learning.settings import LossConfig
from awtpn.model.compute import dropout as compute_dropout
from awtpn.model.settings import ModelConfig
from awtpn.run.position import Position
from awtpn.tracking.monitor import Monitor
from awtpn.training.setup import set_threads, setup
from awtpn.training.step import seed_randomness
from awtpn.training.trainer import train_epoch
from shards import FeatureBatch
from shards.cores import cpu_quota, usable_cores

LENGTHS = [
    (5, 3),
    (60, 20),
    (1, 0),
    (7, 9),
    (0, 4),
    (30, 30),
    (2, 2),
    (9, 1),
    (11, 12),
    (3, 5),
    (8, 8),
    (4, 6),
]

V1_QUOTA, V1_PERIOD = "cpu,cpuacct/cpu.cfs_quota_us", "cpu,cpuacct/cpu.cfs_period_us"


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def a_batch() -> FeatureBatch:
    return batch(utterances(LENGTHS), [i % 3 for i in range(len(LENGTHS))])


# --- How many ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "membership", "cores"),
    [
        ({}, "0::/", math.inf),
        ({"cpu.max": "max 100000"}, "0::/", math.inf),
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 3),
        ({"cpu.max": "200000 100000"}, "0::/a/path/of/the/host", 2),
        ({V1_QUOTA: "50000", V1_PERIOD: "100000"}, "4:cpu,cpuacct:/", 0.5),
        ({V1_QUOTA: "-1", V1_PERIOD: "100000"}, "4:cpu,cpuacct:/", math.inf),
        ({"cpu.max": "nonsense"}, "0::/", math.inf),
    ],
)
def test_the_quota_of_control_groups(
    files: dict[str, str], membership: str, cores: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text + "\n")
    (tmp_path / "self").write_text("12:devices:/x\n" + membership + "\n")
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "self") == cores


def test_usable_cores_are_at_least_one(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("10000 100000\n")
    (tmp_path / "self").write_text("0::/\n")
    assert usable_cores(tmp_path, tmp_path / "self") == 1
    assert usable_cores(tmp_path, tmp_path / "none") >= 1


@pytest.mark.parametrize(
    ("asked", "recorded", "ranks", "environment", "cores", "threads"),
    [
        (None, 0, 1, {}, 1, 1),
        (None, 0, 1, {}, 2, 2),
        (None, 0, 1, {}, 16, 15),  # one is left to the thread that reads
        (None, 0, 4, {}, 16, 3),
        (None, 0, 32, {}, 16, 1),
        (None, 0, 1, {"OMP_NUM_THREADS": "3"}, 16, 3),
        (None, 0, 1, {"OMP_NUM_THREADS": ""}, 2, 2),
        (None, 0, 1, {"OMP_NUM_THREADS": "4,2"}, 2, 4),
        (None, 5, 1, {"OMP_NUM_THREADS": "3"}, 16, 5),  # as the run began
        (6, 5, 1, {"OMP_NUM_THREADS": "3"}, 16, 6),
    ],
)
def test_how_many_threads(
    asked: int | None,
    recorded: int,
    ranks: int,
    environment: dict[str, str],
    cores: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_threads, "usable_cores", lambda: cores)
    assert choose_threads(asked, recorded, ranks, environment) == threads


def test_a_resumed_run_keeps_its_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config, layout = Config(), make_layout(32, None, 1)
    assert set_threads(config, ALONE, layout, Position())[0] == 1
    assert set_threads(config, ALONE, layout, Position(threads=2))[0] == 2
    assert not capsys.readouterr().out
    config.train.threads = 3
    threads, pieces = set_threads(config, ALONE, layout, Position(threads=2))
    assert (threads, pieces.count) == (3, 3)
    assert "3 threads instead of 2" in capsys.readouterr().out


def test_more_threads_than_cores_are_not_taken_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("awtpn.training.setup.usable_cores", lambda: 2)
    config, layout = Config(), make_layout(32, None, 1)
    assert set_threads(config, ALONE, layout, Position(threads=64))[0] == 2
    assert "2 threads instead of 64" in capsys.readouterr().out
    torch.set_num_threads(1)
    ranks = replace(ALONE, engine="ddp")
    assert set_threads(config, ranks, layout, Position(threads=2)) == (1, ONE_PIECE)
    assert "1 threads instead of 2" in capsys.readouterr().out
    on_gpu = replace(ALONE, device=torch.device("meta"))
    assert set_threads(config, on_gpu, layout, Position(threads=2)) == (0, ONE_PIECE)


@pytest.mark.parametrize(
    ("threads", "places", "negatives", "modalities", "pieces", "inside"),
    [
        (2, 32, "group", ["audio", "video"], 2, 1),
        (16, 32, "group", ["audio", "video"], 4, 4),
        (16, 32, "group", ["audio"], 16, 1),  # no negatives, so any utterance may begin a piece
        (2, 96, "global", ["audio", "video"], 1, 2),
        (2, 32, "global", ["audio", "video"], 2, 1),  # accumulation
        (2, 32, "reference", ["audio", "video"], 1, 2),
        (1, 32, "group", ["audio", "video"], 1, 1),
        (3, 12, "group", ["audio", "video"], 3, 1),  # the whole batch's means are known: cut anywhere
    ],
)
def test_negatives_decide_how_a_batch_may_be_cut(
    threads: int, places: int, negatives: Any, modalities: list[str], pieces: int, inside: int
) -> None:
    made = make_piece_threads(
        threads,
        Layout(96, places, 96 // places),
        ModelConfig(modalities=modalities),
        LossConfig(negatives=negatives),
    )
    assert made.count == pieces
    assert torch.get_num_threads() == inside


# --- Pieces --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 12, 40])
@pytest.mark.parametrize("granule", [1, 2, 4])
def test_pieces_are_whole_granules_of_about_equal_work(count: int, granule: int) -> None:
    whole = replace(a_batch(), first_place=24, place=torch.arange(12) + 24)
    edges = balanced_edges(whole, count, granule, 8)
    assert edges[0] == 24
    assert edges[-1] == 36
    assert len(edges) - 1 <= min(count, 12 // granule)
    assert all(b > a and (a - 24) % granule == 0 for a, b in itertools.pairwise(edges))
    pieces = whole.cut(edges)
    assert [key for piece in pieces for key in piece.key] == whole.key
    for m in DIMS:
        values = torch.cat([piece.features[m].values for piece in pieces])
        assert torch.equal(values, whole.features[m].values)


def test_long_utterances_have_a_piece_of_their_own() -> None:
    lengths = [(500, 500), *[(20, 20)] * 11]
    whole = batch(utterances(lengths), [0] * 12)
    assert balanced_edges(whole, 2, 1, 8) == [0, 1, 12]


def test_pieces_of_a_batch_without_utterances() -> None:
    empty = replace(batch([], []), num_places=16)
    pieces = empty.cut(balanced_edges(empty, 2, 8, 8))
    assert sum(piece.num_places for piece in pieces) == 16
    assert all(len(piece) == 0 for piece in pieces)


def test_the_output_of_pieces_is_that_of_the_batch() -> None:
    model, whole = small_model().eval(), a_batch()
    pieces = make_piece_threads(3, Layout(12, 12, 1), ModelConfig(shared_dim=8), LossConfig(negative_group=4))
    one, joined = model(whole.features), forward_in_pieces(model, whole, pieces)
    torch.testing.assert_close(joined.logits, one.logits, rtol=1e-12, atol=1e-12)
    assert not joined.logits.requires_grad
    for m, expected in one.streams.items():
        for name, value in vars(expected).items():
            torch.testing.assert_close(getattr(joined.streams[m], name), value, rtol=1e-12, atol=1e-12)


def test_an_error_in_any_piece_is_raised_when_all_have_ended() -> None:
    threads, ended = make_piece_threads(2, Layout(16, 16, 1), ModelConfig(), LossConfig()), []

    def work(number: int, broken: int) -> int:
        if number == broken:
            raise ValueError(f"piece {number}")
        ended.append(number)
        return number

    assert threads.map(work, [0, 1], [9, 9]) == [0, 1]
    for broken in (0, 1):
        ended.clear()
        with pytest.raises(ValueError, match=f"piece {broken}"):
            threads.map(work, [0, 1], [broken, broken])
        assert ended == [1 - broken]
    assert ONE_PIECE.map(work, [3], [9]) == [3]


def test_dropout_is_that_of_the_whole_batch() -> None:
    model, whole = small_model(dropout=0.4).train(), a_batch()
    for of_statistics in model.statistics.values():
        torch.nn.init.normal_(of_statistics.weight)
    seed_randomness(0, 5, 0, 0)
    one = model(whole.features)
    pieces = whole.cut([0, 4, 12])
    seed_randomness(0, 5, 0, 0)
    drawn = cpu_threads.draw_dropout(pieces, model.config, torch.float64)
    outputs = [model(piece.features, factors) for piece, factors in zip(pieces, drawn, strict=True)]
    joined = cpu_threads.join_outputs(outputs)
    torch.testing.assert_close(joined.logits, one.logits, rtol=1e-12, atol=1e-12)
    for m, expected in one.streams.items():
        assert torch.equal(joined.streams[m].h == 0, expected.h == 0)
        torch.testing.assert_close(joined.streams[m].h, expected.h, rtol=1e-12, atol=1e-12)


def seeded_masks(whole: FeatureBatch, edges: list[int], p: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """The factors of all pieces as one tensor per modality, and under "state" what the generator is then."""
    seed_randomness(0, 5, 0, 0)
    config = ModelConfig(shared_dim=8, dropout=p, statistics_dropout=0.5)
    of_pieces = cpu_threads.draw_dropout(whole.cut(edges), config, dtype)
    joined = {m: torch.cat([drawn.steps[m] for drawn in of_pieces]) for m in DIMS}
    of_statistics = {f"{m} statistics": torch.cat([drawn.statistics[m] for drawn in of_pieces]) for m in DIMS}
    return joined | of_statistics | {"state": torch.get_rng_state()}


@pytest.mark.parametrize("at_once", [1 << 16, 37])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_is_bernoullis_whatever_the_threads(
    p: float, dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one, two and three threads the very bits of `bernoulli_`, which `nn.Dropout` draws with."""
    monkeypatch.setattr(compute_dropout, "DRAW_CHUNK", at_once)
    whole = a_batch()
    seed_randomness(0, 5, 0, 0)
    kept = 1 - p
    expected = {
        m: torch.empty(len(whole.features[m].values), 8, dtype=dtype).bernoulli_(kept).div_(kept)
        for m in ModelConfig().modalities
    }
    expected |= {
        f"{m} statistics": torch.empty(len(whole), 2 * dim).bernoulli_(0.5).div_(0.5)
        for m, dim in DIMS.items()
    }
    expected["state"] = torch.get_rng_state()
    for threads in (1, 2, 3):
        edges = balanced_edges(whole, threads, 1, 8)
        assert len(edges) == threads + 1
        drawn = seeded_masks(whole, edges, p, dtype)
        for name, tensor in expected.items():
            assert torch.equal(drawn[name], tensor), (threads, name)


def test_another_bernoulli_draws_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a torch whose `bernoulli_` does not compare float64 the threads take the numbers, too."""

    def other(out: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
        return out.copy_(torch.rand(out.shape, generator=generator) < p)

    monkeypatch.setattr(torch.Tensor, "bernoulli_", other)
    compares = compute_dropout.bernoulli_is_from_uniform.__wrapped__
    assert not compares()
    monkeypatch.setattr(compute_dropout, "bernoulli_is_from_uniform", compares)
    whole = a_batch()
    seed_randomness(0, 5, 0, 0)
    expected = torch.empty(len(whole.features["audio"].values), 8).bernoulli_(0.6).div_(0.6)
    assert torch.equal(seeded_masks(whole, [0, 4, 12], 0.4, torch.float32)["audio"], expected)


# --- Training ------------------------------------------------------------------------------------


def trained(
    corpus: str, folder: Path, threads: int, **settings: Any
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Metrics and weights after two epochs with so many threads."""
    config = Config()
    config.data.train, config.data.val = corpus, None
    config.model.shared_dim, config.model.dropout = 16, 0.3
    config.train.global_batch_size, config.train.epochs, config.train.threads = 32, 2, threads
    for name, value in settings.items():
        section, key = name.split("__")
        setattr(getattr(config, section), key, value)
    layout = make_layout(32, config.train.micro_batch_size, 1)
    folder.mkdir()
    run = setup(config, Accelerator(cpu=True), ALONE, layout, folder, threading.Event())
    assert run.piece_threads.count == threads
    monitor = Monitor(folder, True, 0, run.total_steps)
    for _ in range(2):
        train_epoch(run, monitor)
        run.position.epoch, run.position.epoch_step = run.position.epoch + 1, 0
    monitor.close()
    run.watchdog.close()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prototypes__update": "ema", "loss__class_weights": "balanced"},
        {"train__micro_batch_size": 16},
        {"model__modalities": ["audio"]},
        {"model__awm": "uniform"},
        {"train__precision": "bf16"},
    ],
)
def test_threads_change_no_figure(settings: dict[str, Any], corpus: str, tmp_path: Path) -> None:
    """Same data, same dropout, same losses: by two threads as by one, and by two the same bits again."""
    one, weights = trained(corpus, tmp_path / "one", 1, **settings)
    two, weights_of_two = trained(corpus, tmp_path / "two", 2, **settings)
    again, weights_again = trained(corpus, tmp_path / "again", 2, **settings)
    tolerance = 2e-2 if "train__precision" in settings else 1e-5
    assert len(one) == 4
    for a, b, c in zip(one, two, again, strict=True):
        assert a["fingerprint"] == b["fingerprint"]
        assert a["loss"] == pytest.approx(b["loss"], rel=tolerance)
        assert b["loss"] == pytest.approx(c["loss"], rel=1e-7)
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_of_two[name], tensor, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(weights_again[name], weights_of_two[name], rtol=1e-6, atol=1e-7)


# --- Memory --------------------------------------------------------------------------------------

FAULTS = """
import resource, torch
from awtpn.distributed.cpu_threads import retain_freed_memory
assert retain_freed_memory()
def step(rows):
    x = torch.ones(rows, 1024)
    return (torch.cat([x, x * 2]) @ torch.ones(1024, 8)).sum()
for _ in range(3): step(12_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(10): step(9_000 + 300 * i)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_memory_that_is_held_causes_no_page_faults() -> None:
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=environment(), cwd=REPO, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    pages_of_a_step = 4 * 9_000 * 4096 // resource.getpagesize()
    assert int(done.stdout) < pages_of_a_step  # of ten steps; without it each has them all


def test_what_the_environment_says_of_memory_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not cpu_threads.retain_freed_memory()
