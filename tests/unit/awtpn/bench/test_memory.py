"""The memory estimate: its pieces by hand, activations as torch allocates them, and real ranks under ZeRO."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import zero_memory
from support import pack_corpus

from awtpn.bench.machine import peak_allocated
from awtpn.bench.memory_estimate import (
    Workload,
    activation_bytes,
    largest_steps,
    peak,
    phase_bytes,
    saving_bytes,
)
from awtpn.bench.step import packed_loss
from awtpn.cli import main
from awtpn.distributed.engines.deepspeed_config import Buckets, read_buckets
from awtpn.inference.predictor import pack_arrays
from awtpn.learning.settings import LossConfig
from awtpn.model.network import AWTPN
from awtpn.model.settings import ModelConfig
from shards.streaming.stream import PREFETCH_BYTES

# Of a model of 1,000 x 8 + 8 + 2 * 8^2 + 7 * 8 + 7 * 8 + 7 parameters.
WORK = Workload({"audio": 1000}, 8, 7, {"audio": 100}, batch_bytes=200_000, dropout=False)
P = 8000 + 8 + 128 + 56 + 56 + 7


def on_gpu(engine: str, ranks: int, precision: str = "bf16", work: Workload = WORK, **buckets: int) -> dict:
    return phase_bytes(work, engine, ranks, precision, on_gpu=True, buckets=Buckets(**buckets))


def test_model_states_by_hand() -> None:
    """Bytes per parameter: 16 in float32, 2 + 12 / N under ZeRO 1 and 2, 14 / N and buffers under ZeRO 3."""
    assert WORK.parameters == P
    none = on_gpu("none", 1, "fp32")["backward"]
    assert none == {"weights": 4 * P, "optimizer states": 8 * P, "gradients": 4 * P, "batches": 400_000}
    assert on_gpu("ddp", 4, "fp32")["backward"]["buckets"] == 4 * P
    averaged = replace(WORK, averaged=True)
    assert on_gpu("ddp", 4, work=averaged)["rest"]["averaged weights"] == 4 * P
    assert on_gpu("zero3", 4, work=averaged)["rest"]["averaged weights"] == P
    assert saving_bytes(averaged, "ddp") - saving_bytes(WORK, "ddp") == 4 * P
    two = on_gpu("zero2", 4, reduce=P)["rest"]
    assert two == {"weights": 2 * P, "master weights": P, "optimizer states": 2 * P, "batches": 400_000}
    three = on_gpu("zero3", 4, reduce=P)
    assert three["rest"]["weights"] == three["rest"]["gradients"] == P / 2
    assert three["rest"]["buckets"] == 2 * P
    # All weights gathered, and once more on the way: the whole model is less than a prefetch.
    assert three["gathering"]["gathered weights"] == 4 * P
    assert three["forward"]["gathered weights"] == 2 * P
    # At least the largest module stays: two maps, or what is as large.
    assert on_gpu("zero3", 4, live=100)["forward"]["gathered weights"] == min(2 * P, 2 * 2 * 8000)


def test_buckets_are_reserved_on_a_gpu_and_filled_on_a_cpu() -> None:
    one = on_gpu("zero2", 2, "fp32", reduce=10 * P)["backward"]["buckets"]
    assert one == 4 * (10 * P + P)  # the bucket, and a flat copy of what is in it
    both = phase_bytes(
        WORK, "zero2", 2, "fp32", on_gpu=True, buckets=Buckets(reduce=10 * P, overlap_comm=True)
    )
    assert both["backward"]["buckets"] - one == 4 * 10 * P
    assert (
        phase_bytes(WORK, "zero2", 2, "fp32", buckets=Buckets(reduce=10 * P))["backward"]["buckets"] == 8 * P
    )
    # Alone there is nothing to copy together.
    assert phase_bytes(WORK, "zero2", 1, "fp32")["backward"]["buckets"] == 4 * P


def test_accumulation_holds_gradients_while_forward_runs() -> None:
    several = Workload({"audio": 1000}, 8, 7, {"audio": 100}, batch_bytes=200_000, accumulation=4)
    held = {
        engine: on_gpu(engine, 4, work=several)["forward"].get("gradients")
        for engine in ("ddp", "zero1", "zero2")
    }
    assert held == {"ddp": 4 * P, "zero1": 2 * P, "zero2": P / 2}
    assert "gradients" not in on_gpu("ddp", 4)["forward"]


def test_more_ranks_and_higher_stages_take_less() -> None:
    wide = Workload({"audio": 1024}, 8192, 7, {"audio": 300}, batch_bytes=1e6)

    def most(engine: str, ranks: int) -> float:
        return peak(phase_bytes(wide, engine, ranks, "bf16"))[1]

    assert most("ddp", 8) > most("zero1", 8) >= most("zero2", 8)
    assert most("zero2", 8) > most("zero2", 64) > most("zero2", 512)
    assert saving_bytes(wide, "ddp") == 12 * wide.parameters
    large = Workload({"audio": 1024}, 8, 7, {"audio": 300}, batch_bytes=2.0 * PREFETCH_BYTES)
    assert phase_bytes(large, "none", 1)["rest"]["batches"] == 7 * PREFETCH_BYTES  # reading ahead is bounded


@pytest.mark.parametrize("mode", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize(
    ("dim", "dropout", "modalities"),
    [(128, 0.1, 2), (128, 0.0, 2), (1024, 0.1, 2), (128, 0.1, 4)],
)
def test_activations_are_what_torch_allocates(mode: str, dim: int, dropout: float, modalities: int) -> None:
    """The peak of a forward and backward, by the allocator's own count of what it gives and takes."""
    rng = np.random.default_rng(0)
    audio = rng.integers(20, 200, 16).tolist()
    of_audio = {"audio": 1, "video": 2, "text": 4, "pose": 2}
    lengths = {m: [n // part for n in audio] for m, part in [*of_audio.items()][:modalities]}
    dims = {m: {"audio": 128, "video": 64, "text": 96, "pose": 32}[m] for m in lengths}
    torch.manual_seed(0)
    config = ModelConfig(shared_dim=dim, dropout=dropout, modalities=list(dims))  # type: ignore[arg-type]
    model = AWTPN(config, dims, list("abcdefg"))
    if mode == "bf16":
        model.to(torch.bfloat16)
    features = {
        m: pack_arrays([rng.standard_normal((n, dims[m])).astype(np.float16) for n in of], dims[m])
        for m, of in lengths.items()
    }
    label = torch.arange(16) % 7

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            output = model(features)
        packed_loss(output, label, LossConfig()).backward()

    step()  # gradients come into being
    allocated = peak_allocated(step)
    steps = {m: sum(of) for m, of in lengths.items()}
    scores = {m: float(np.square(of).sum()) for m, of in lengths.items()}
    work = Workload(dims, dim, 7, steps, batch_bytes=0, dropout=dropout > 0, scores=scores)
    estimate = activation_bytes(work, mode != "fp32", autocast=mode == "autocast", on_gpu=False)
    assert estimate == pytest.approx(allocated, rel=0.15)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    return zero_memory.write_corpus(tmp_path_factory.mktemp("memory") / "corpus", utterances=32)


@pytest.mark.parametrize(("engine", "precision"), [("zero2", "fp32"), ("zero3", "bf16")])
def test_real_ranks_take_what_was_told(engine: str, precision: str, corpus: str, tmp_path: Path) -> None:
    """Two steps of configs/large.yaml at a width of 2,048 on two ranks: growth of resident memory."""
    overrides = zero_memory.settings(engine, precision, 2048, corpus)
    measured = zero_memory.measure(engine, precision, 2, overrides, tmp_path)
    told, saving, _ = zero_memory.estimate(engine, 2, overrides)
    assert told == pytest.approx(measured["training"], rel=0.15)
    assert saving == pytest.approx(measured["saving"], rel=0.15)


def test_the_command_reads_the_data_and_takes_overrides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = pack_corpus(tmp_path / "corpus")
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{train: {url}}}\nmodel: {{shared_dim: 64}}\n")
    main(
        [
            "doctor",
            "--memory",
            str(config),
            "--ranks",
            "2",
            "5",
            "--train.precision",
            "bf16",
            "--device",
            "cpu",
        ]
    )
    told = capsys.readouterr().out
    # That corpus has 6 and 5 features, and 3 classes.
    parameters = (6 + 5 + 2) * 64 + 4 * 64**2 + 3 * 64 + 3 * 64 + 3 + 2 * (6 + 5) * 3
    assert f"2 ranks: {parameters:,} parameters" in told
    assert [line.split(" |")[0] for line in told.splitlines() if line.startswith("| ")] == [
        "| engine",
        "| ---",
        *(f"| {engine}" for engine in ("ddp", "zero0", "zero1", "zero2", "zero3")),
    ]
    assert "5 ranks: train.global_batch_size 32 does not divide over 5 ranks" in told


def test_what_cannot_be_estimated_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{train: {tmp_path / 'nowhere'}}}\n")
    with pytest.raises(
        SystemExit, match=r"nowhere.*its sizes, such as --steps audio=60 video=60 --features audio=1024"
    ):
        main(["doctor", "--memory", str(config)])
    with pytest.raises(SystemExit, match=r"--steps names .*audio.*, but --features"):
        main(["doctor", "--memory", str(config), "--steps", "audio=10"])
    sizes = ["--steps", "text=30", "--features", "text=1024"]
    told = "--steps names text, but model.modalities audio, video: give .*, or --model.modalities text$"
    with pytest.raises(SystemExit, match=told):
        main(["doctor", "--memory", str(config), *sizes])
    with pytest.raises(SystemExit, match="takes NAME=NUMBER, such as text=30, not 'audio'"):
        main(["doctor", "--memory", str(config), "--steps", "audio", "--features", "audio=4"])
    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}')
    with pytest.raises(ValueError, match="offload_optimizer, which is not estimated"):
        read_buckets(file)
    file.write_text('{"zero_optimization": {"reduce_bucket_size": 5e7, "overlap_comm": true}, "bf16": {}}')
    assert read_buckets(file) == Buckets(reduce=50_000_000, overlap_comm=True)


@pytest.mark.parametrize("sizes", [{"text": 1024}, {"audio": 40, "video": 20, "text": 1024, "pose": 8}])
def test_sizes_of_any_modalities_are_taken(
    sizes: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{train: {tmp_path / 'nowhere'}}}\nmodel: {{shared_dim: 64}}\n")
    steps = [f"{name}=30" for name in sizes]
    features = [f"{name}={dim}" for name, dim in sizes.items()]
    words = ["--steps", *steps, "--features", *features, f"--model.modalities={','.join(sizes)}"]
    main(["doctor", "--memory", str(config), "--ranks", "1", "--device", "cpu", *words])
    parameters = sum((dim + 1) * 64 + 2 * 64**2 for dim in sizes.values()) + 7 * 64 + 7 * 64 + 7
    parameters += 2 * sum(sizes.values()) * 7  # of the statistics
    told = capsys.readouterr().out
    assert f"1 rank: {parameters:,} parameters" in told
    assert f"mean steps per utterance: {', '.join(f'{name} 30' for name in sizes)}" in told


def test_a_micro_batch_hardly_exceeds_three_deviations() -> None:
    assert largest_steps(100, 50, 600, micro_batch=16, accumulation=1) == 1600  # shares are of equal work
    assert largest_steps(100, 50, 600, micro_batch=16, accumulation=4) == 1600 + 3 * 50 * np.sqrt(12) // 1 + 1
    assert largest_steps(100, 500, 110, micro_batch=2, accumulation=4) == 220
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(120), 0.57, 100_000), 20, 600)
    limit = largest_steps(lengths.mean(), lengths.std(), 600, 16, accumulation=1000)
    sums = np.random.default_rng(1).permutation(lengths).reshape(-1, 16).sum(1)
    assert (sums > limit).mean() < 0.01
    assert limit < 1.2 * sums.max()


def test_half_precision_at_stage_0_keeps_everything_on_every_rank() -> None:
    """DeepSpeed's FP16_UnfusedOptimizer: 2 + 4 + 8 bytes per parameter, and gradients in both precisions."""
    for ranks in (1, 8):
        found = on_gpu("zero0", ranks)
        assert found["rest"] == {
            "weights": 2 * P,
            "optimizer states": 8 * P,
            "master weights": 4 * P,
            "batches": 400_000,
        }
        assert found["update"]["gradients"] == 2 * P
        assert found["update"]["update"] == 4 * P
