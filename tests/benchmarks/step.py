"""Training steps per second and memory: this project's packed step beside the published padded one.

    python tests/benchmarks/step.py                       # CPU, D 256, batch 32, two threads
    python tests/benchmarks/step.py --device cuda --precision bf16 --dims 256 1024 4096 --batches 64 256 1024

Utterance lengths are log-normal (audio median 120, 20 to 600; video half as many), features float16
[M, 1024] and [M/2, 512]. Both run whole optimizer steps on the same utterances, in turn; medians and their
ratio. Peak memory growth is measured in a process of its own for each.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from published import Published, published_loss

from awtpn.losses import Denominators, LossConfig, NegativePool, loss_terms, total_loss
from awtpn.model import AWTPN, ModelConfig
from awtpn.optim import OptimConfig, make_optimizer
from awtpn.predictor import pack_arrays
from shards import Ragged

AUDIO, VIDEO, CLASSES, BATCHES = 1024, 512, 7, 6


def make_batches(batch: int, device: str) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(BATCHES):
        steps = np.clip(rng.lognormal(np.log(120), 0.7, batch), 20, 600).astype(int)
        audio = [rng.standard_normal((m, AUDIO), np.float32).astype(np.float16) for m in steps]
        video = [rng.standard_normal((m // 2, VIDEO), np.float32).astype(np.float16) for m in steps]
        packed = {"audio": pack_arrays(audio, AUDIO), "video": pack_arrays(video, VIDEO)}
        made.append(
            {
                "packed": {
                    m: Ragged(r.values.to(device), r.offsets.to(device), r.host_offsets)
                    for m, r in packed.items()
                },
                "audio": [torch.from_numpy(a).to(device) for a in audio],
                "video": [torch.from_numpy(v).to(device) for v in video],
                "label": torch.from_numpy(rng.integers(0, CLASSES, batch)).to(device),
                "steps": steps,
            }
        )
    return made


def packed_step(dim: int, device: str, autocast: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    """This project's step: default forms, a negative of the next place."""
    config = ModelConfig(shared_dim=dim, distance_scale_audio=1 / dim, distance_scale_video=1 / dim)
    model = AWTPN(config, {"audio": AUDIO, "video": VIDEO}, [str(c) for c in range(CLASSES)]).to(device)
    optimizer, losses = make_optimizer(model, OptimConfig()), LossConfig()

    def step(batch: dict[str, Any]) -> None:
        n = len(batch["label"])
        denominators = Denominators(n, {"audio": n, "video": n}, n, {"inter": n, "contrast": n}, n)
        with autocast():
            output = model(batch["packed"])
        row = torch.arange(n, device=device).roll(1)
        pool = NegativePool(output.streams["video"].mean, {"inter": row, "contrast": row})
        loss = total_loss(loss_terms(output, batch["label"], pool, denominators, losses), losses)
        update(model, optimizer, loss)

    return step


def padded_step(dim: int, device: str, autocast: Callable[[], Any]) -> Callable[[dict[str, Any]], None]:
    """The published step, its batches padded as its collate function would."""
    model = Published(AUDIO, VIDEO, dim, CLASSES).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)

    def step(batch: dict[str, Any]) -> None:
        audio = pad_sequence(batch["audio"], batch_first=True).float()
        video = pad_sequence(batch["video"], batch_first=True).float()
        with autocast():
            loss = published_loss(model, audio, video, batch["label"])
        update(model, optimizer, loss)

    return step


def update(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


FORMS = {"packed": packed_step, "padded": padded_step}


def make_step(form: str, dim: int, options: argparse.Namespace) -> Callable[[dict[str, Any]], None]:
    torch.manual_seed(0)
    if options.precision == "fp32":
        return FORMS[form](dim, options.device, contextlib.nullcontext)
    return FORMS[form](dim, options.device, lambda: torch.autocast(options.device, torch.bfloat16))


def utterances_per_s(
    step: Callable[[dict[str, Any]], None], batches: list[dict[str, Any]], device: str
) -> float:
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    if device == "cuda":
        torch.cuda.synchronize()
    return sum(len(b["label"]) for b in batches) / (time.perf_counter() - start)


def memory_growth(form: str, dim: int, batch: int, options: argparse.Namespace) -> float:
    """Peak memory above that of the loaded process with its batches, in MiB, by a process of its own."""
    command = [sys.executable, __file__, "--memory_of", form, "--dims", str(dim), "--batches", str(batch)]
    command += [
        "--device",
        options.device,
        "--precision",
        options.precision,
        "--threads",
        str(options.threads),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_memory_growth(options: argparse.Namespace) -> None:
    batches = make_batches(options.batches[0], options.device)
    step = make_step(options.memory_of, options.dims[0], options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        utterances_per_s(step, batches, "cuda")
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        before = peak_memory(reset=True)
        utterances_per_s(step, batches, "cpu")
        print(peak_memory() - before)


def peak_memory(reset: bool = False) -> float:
    """Peak resident memory of this process in MiB, since its start or the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--dims", type=int, nargs="+", default=[256])
    parser.add_argument("--batches", type=int, nargs="+", default=[32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory_of", choices=list(FORMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        return print_memory_growth(options)

    print(f"{date.today()}, {hardware(options.device)}, {options.threads} threads, ", end="")
    print(f"torch {torch.__version__}, {options.precision}\n")
    print("| D | batch | padding | padded utt/s | packed utt/s | ratio | padded MiB | packed MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for dim in options.dims:
        for batch in options.batches:
            batches = make_batches(batch, options.device)
            steps = {form: make_step(form, dim, options) for form in FORMS}
            rates: dict[str, list[float]] = {form: [] for form in FORMS}
            for round_ in range(options.rounds + 1):  # the first warms up
                for form, step in steps.items():
                    rate = utterances_per_s(step, batches, options.device)
                    if round_:
                        rates[form].append(rate)
            ratio = statistics.median(p / q for p, q in zip(rates["packed"], rates["padded"], strict=True))
            waste = np.mean([b["steps"].max() * batch / b["steps"].sum() for b in batches])
            padded, packed = (statistics.median(rates[form]) for form in ("padded", "packed"))
            growth = {form: memory_growth(form, dim, batch, options) for form in FORMS}
            print(
                f"| {dim} | {batch} | {waste:.2f}x | {padded:.0f} | {packed:.0f} | {ratio:.2f}x "
                f"| {growth['padded']:.0f} | {growth['packed']:.0f} |"
            )


if __name__ == "__main__":
    main()
