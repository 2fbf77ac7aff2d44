"""Shared by the tests: small models, batches and corpora; starting processes that end with their test."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import shards
from awtpn.distributed.world import World
from awtpn.learning.settings import TERMS
from awtpn.model.compute.matrix_products import products_repeat
from awtpn.model.files import OPTIMIZER_FILE, WEIGHTS_FILE
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from awtpn.model.task import Task
from shards import FeatureBatch, Ragged, Sample
from shards.format.targets import Target

REPO = Path(__file__).resolve().parent.parent
CLASSES = ["calm", "happy", "sad"]
DIMS = {"audio": 6, "video": 5}
THREE_DIMS = DIMS | {"text": 4}
FOUR_DIMS = THREE_DIMS | {"pose": 3}
# Of `pack_corpus`.
TARGETS = {
    "va": Target("regression", {"valence": [-3, 3], "activation": [1, 5]}, missing=True),
    "labels": Target("multilabel", {"loud": [0, 1], "bright": [0, 3]}, missing=True),
}
ALONE = World(0, 1, 0, torch.device("cpu"), None, "none")

# Most seconds that a test waits for a process or an event. Only a hang reaches it, also on a machine several
# times slower than those of CI. The limit of a whole test is in pyproject.toml.
LIMIT = 600.0
# Largest relative difference of results that differ only by the last bits of matrix products.
SAME = 1e-5
# Fields of a metrics line that depend on the machine's speed.
TIMINGS = ("utterances_per_s", "data_wait")


# --- Models and batches --------------------------------------------------------------------------


def small_model(
    *,
    dtype: torch.dtype = torch.float64,
    learnable: bool = True,
    dims: dict[str, int] = DIMS,
    task: Task | None = None,
    **settings: Any,
) -> AWTPN:
    """A model with random weights, the same for the same settings, and prototypes from N(0, 1).

    It tells CLASSES apart, or does `task`.
    """
    torch.manual_seed(1)
    config = ModelConfig(**({"shared_dim": 8, "dropout": 0.0, "modalities": list(dims)} | settings))
    model = AWTPN(config, dims, CLASSES, learnable, task)
    with torch.no_grad():
        model.tpn.prototypes.copy_(torch.randn(model.tpn.prototypes.shape))
    return model.to(dtype)


def ragged(sequences: Sequence[Tensor], dim: int) -> Ragged:
    """Pack [T_i, dim] sequences; there may be none."""
    offsets = torch.tensor([0, *np.cumsum([len(s) for s in sequences])], dtype=torch.int32)
    dtype = sequences[0].dtype if sequences else torch.float64
    return Ragged(torch.cat([torch.zeros(0, dim, dtype=dtype), *sequences]), offsets, offsets)


def utterances(
    lengths: Sequence[Sequence[int]],
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    dims: dict[str, int] = DIMS,
) -> list[dict[str, Tensor]]:
    """One dict of features per utterance's (audio steps, video steps), or of the modalities of `dims`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            name: torch.randn(steps, dims[name], generator=generator, dtype=dtype)
            for name, steps in zip(dims, of_utterance, strict=True)
        }
        for of_utterance in lengths
    ]


def features(of: Sequence[dict[str, Tensor]], dims: dict[str, int] = DIMS) -> dict[str, Ragged]:
    """Pack utterances for the model; [] gives an empty batch."""
    return {name: ragged([u[name] for u in of], dim) for name, dim in dims.items()}


def batch(
    of: Sequence[dict[str, Tensor]],
    label: Sequence[int],
    num_places: int | None = None,
    dims: dict[str, int] = DIMS,
) -> FeatureBatch:
    """A whole global batch of `num_places` places, of which the last may be empty."""
    labels = torch.tensor(label, dtype=torch.int64)
    return FeatureBatch(
        features=features(of, dims),
        label=labels,
        host_label=labels,
        target=torch.zeros(len(of), 0, dtype=torch.float64),
        host_target=torch.zeros(len(of), 0, dtype=torch.float64),
        key=[f"u{i}" for i in range(len(of))],
        place=torch.arange(len(of)),
        first_place=0,
        num_places=num_places or len(of),
        epoch=0,
        step=0,
    )


def poison(batch: FeatureBatch) -> FeatureBatch:
    """The batch with a NaN in its first utterance that has audio; where that is recorded, video."""
    name = next(name for name, of in batch.features.items() if of.values.is_floating_point())
    ragged = batch.features[name]
    values = ragged.values.clone()
    values[0] = float("nan")
    return replace(batch, features=batch.features | {name: replace(ragged, values=values)})


# --- Comparisons ---------------------------------------------------------------------------------


def same_bits_or_close(one: Any, other: Any) -> bool:
    """Whether two tensors, arrays, numbers or JSON values are equal, if matrix products are bit-exact.

    On machines where they are not (`awtpn.model.compute.matrix_products`), floats may differ by 1e-5 of the
    tensor's largest value: a hundred times the rounding of one float32 product, since rounding accumulates
    over training steps. Integers, strings and tensors on a GPU must be equal everywhere.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_bits_or_close(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_bits_or_close, one, other))
    if isinstance(one, np.ndarray):
        one, other = torch.from_numpy(one), torch.from_numpy(other)
    if isinstance(one, Tensor):
        exact = one.device.type != "cpu" or not one.is_floating_point() or products_repeat()
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if exact or torch.equal(one, other):
            return torch.equal(one, other)
        one, other = one.double(), other.double()
        return bool(((one - other).abs() <= SAME * one.abs().max()).all())  # False for NaN
    if isinstance(one, float) and isinstance(other, float) and not products_repeat():
        return one == pytest.approx(other, rel=SAME, abs=SAME * 1e-3)
    return bool(one == other)


# --- Corpora -------------------------------------------------------------------------------------


def pack_corpus(
    out: Path,
    train: int = 52,
    val: int = 14,
    test: int = 14,
    dims: dict[str, int] = DIMS,
    targets: bool = False,
    dtype: str = "float16",
) -> str:
    """Pack a learnable corpus: some utterances lack a modality, with text some lack two; lengths differ.

    With `targets`, utterances also have values ("valence", and "activation", which some lack) and labels
    ("loud", and "bright", which some lack), which follow from the class, up to a little noise.
    """
    rng = np.random.default_rng(0)
    directions = {name: rng.normal(0, 1, (len(CLASSES), dim)) for name, dim in dims.items()}
    samples = []
    for split, size in {"train": train, "val": val, "test": test}.items():
        for i in range(size):
            label = int(rng.integers(len(CLASSES)))
            made: dict[str, np.ndarray | None] = {}
            for name, dim in dims.items():
                noise = rng.normal(0, 1, (int(rng.integers(1, 10)), dim))
                made[name] = (directions[name][label] + noise).astype(np.float32)
            if i % 5 == 4:
                made["video"] = None
            elif i % 7 == 6:
                made["audio"] = None
            if "text" in dims and i % 3 == 1:
                made["text"] = None
            meta: dict[str, Any] = {"fold": i % 4}
            if targets:
                meta["valence"] = round(2.0 * label - 2 + 0.2 * (i % 5 - 2), 2)
                meta["activation"] = None if i % 6 == 1 else [4.5, 1.0, 3.0][label]
                meta |= {"loud": int(label == 0), "bright": None if i % 6 == 2 else [0.0, 2.0, 1.0][label]}
            samples.append(Sample(f"{split}-{i:03d}", split, CLASSES[label], made, meta))
    named = TARGETS if targets else {}
    options: dict[str, Any] = {"shard_bytes": 20_000, "dtype": dtype, "progress": False}
    shards.pack(samples, str(out), classes=CLASSES, targets=named, **options)
    return str(out)


# --- Launches ------------------------------------------------------------------------------------


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child process: this interpreter's tools, one thread, no launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in launcher and not k.startswith(("ACCELERATE_", "TORCHELASTIC_", "DS_", "PYTEST_"))
    }
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    # Import this checkout, whatever is installed.
    kept["PYTHONPATH"] = f"{REPO}{os.pathsep}{REPO / 'tests'}"
    # No GPU: these tests are about processes.
    return kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"} | changes


# Below the ports that the kernel gives to outgoing connections: one of those could be taken before the server
# that it was chosen for starts.
PORTS = range(15_000, 32_000)
_ports_given: set[int] = set()


def free_port() -> int:
    """A port that no program uses; another one at each call, and in each of pytest's processes."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    own = [port for port in PORTS if port % 16 == worker % 16 and port not in _ports_given]
    random.SystemRandom().shuffle(own)
    for port in own:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            _ports_given.add(port)
            return port
    raise RuntimeError("no port is free")


def kill_tree(process: subprocess.Popen[Any]) -> None:
    """Kill a process and its descendants; a process group would miss torchrun's workers."""
    try:
        root = psutil.Process(process.pid)
        tree = [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        tree = []
    for member in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


@contextlib.contextmanager
def launched(command: Sequence[str], log: Path, **env: str) -> Iterator[subprocess.Popen[Any]]:
    """Start a process in the repository root, with its output in `log`; kill it when the block ends."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, cwd=REPO, env=environment(**env)
        )
        try:
            yield process
        finally:
            kill_tree(process)


def run(command: Sequence[str], log: Path, timeout: float = LIMIT, **env: str) -> tuple[int, str]:
    """Run a process to its end; returns its exit code and output."""
    with launched(command, log, **env) as process:
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end after {timeout} s: {command}\n{log.read_text()}") from None
    return code, log.read_text()


@contextlib.contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """Put a terminal in the place of standard error; gives a function that reads what was shown since."""
    screen, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    os.set_blocking(screen, False)

    def shown() -> str:
        found = b""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(screen, 65_536):
                found += part
        return found.decode()

    try:
        with os.fdopen(slave, "w") as stderr, contextlib.redirect_stderr(stderr):
            yield shown
    finally:
        os.close(screen)


# --- Runs ----------------------------------------------------------------------------------------


def arguments(settings: dict[str, Any]) -> list[str]:
    """{"train.epochs": 3} -> ["--train.epochs", "3"]."""
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without TIMINGS."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def status(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "status.json").read_text())  # type: ignore[no-any-return]


def weights(run_dir: Path, checkpoint: str = "latest") -> dict[str, Tensor]:
    return load_file(run_dir / "checkpoints" / checkpoint / WEIGHTS_FILE)


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that metrics, weights and moments of two finished runs are `same_bits_or_close`."""
    ours, theirs = metrics(one), metrics(other)
    assert same_bits_or_close(ours, theirs), "metrics.jsonl"
    for file in (WEIGHTS_FILE, OPTIMIZER_FILE):
        mine, yours = (load_file(run / "checkpoints" / "latest" / file) for run in (one, other))
        assert mine.keys() == yours.keys()
        differing = [name for name in mine if not same_bits_or_close(mine[name], yours[name])]
        assert not differing, f"{file}: {differing}"


def assert_same_results(one: Path, other: Path) -> None:
    """Assert that the contents of two JSON files are `same_bits_or_close`."""
    ours, theirs = (json.loads(path.read_text()) for path in (one, other))
    assert same_bits_or_close(ours, theirs)


def assert_like_runs(one: Path, other: Path, loss: float = 1e-5, weight: float = 1e-4) -> None:
    """Assert that two runs have the same fingerprints, and the same losses and weights to rounding."""
    ours, theirs = metrics(one), metrics(other)
    assert [(x["step"], x["fingerprint"]) for x in ours] == [(x["step"], x["fingerprint"]) for x in theirs]
    for x, y in zip(ours, theirs, strict=True):
        for name in ("loss", *(term for term in TERMS if term in x or term in y)):
            assert x[name] == pytest.approx(y[name], rel=loss, abs=loss), f"{name} of step {x['step']}"
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-4), f"gradient of step {x['step']}"
    ours_w, theirs_w = weights(one), weights(other)
    for name, tensor in ours_w.items():
        torch.testing.assert_close(
            tensor, theirs_w[name], rtol=0, atol=weight, msg=lambda m, n=name: f"{n}: {m}"
        )
