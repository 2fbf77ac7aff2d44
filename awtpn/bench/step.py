"""Benchmark of the training step: this project's packed step beside the published padded one.

    python -m awtpn.bench.step                       # CPU, D 256, batch 32, two threads
    python -m awtpn.bench.step --device cuda --precision bf16 --dims 256 1024 4096 --batches 64 256 1024

Utterance lengths are log-normal (audio median 120, 20 to 600; video half as many), features float16
[M, 1024] and [M/2, 512]. Both take the same utterances in turn through forward, losses, backward, clipping
and AdamW; `bench.end_to_end` adds what the trainer does around a step. The table shows medians and their
ratio. The growth of peak memory is measured in a separate process for each, after a first small step.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from awtpn.bench.gpu.probe import recorded_forms
from awtpn.bench.machine import child_environment, describe, read_peak, start_peak, synchronize
from awtpn.bench.published_step import Published, published_loss
from awtpn.inference.predictor import pack_arrays
from awtpn.learning.losses import LossNormalizers, NegativePool, loss_terms, total_loss
from awtpn.learning.negatives import DRAWS
from awtpn.learning.optimizer import make_optimizer, set_grad_norm
from awtpn.learning.settings import LossConfig, OptimConfig
from awtpn.model.compute.flops import step_flops
from awtpn.model.network import AWTPN
from awtpn.model.settings import FORMER_MODEL, ModalitySettings, ModelConfig
from shards import Ragged
from shards.format.precision_names import short_name
from shards.safe_io.markdown import table

AUDIO, VIDEO, CLASSES, BATCHES = 1024, 512, 7, 6
DIMS = {"audio": AUDIO, "video": VIDEO}

Step = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Setting:
    """Where and how steps run: "cpu" or "cuda", "fp32" or "bf16", number of torch threads."""

    device: str
    precision: str
    threads: int

    def autocast(self) -> Any:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.precision == "fp32" else torch.bfloat16


def make_batches(batch: int, device: str) -> list[dict[str, Any]]:
    """BATCHES batches of random utterances on `device`, each in packed form and as lists of tensors."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(BATCHES):
        steps = np.clip(rng.lognormal(np.log(120), 0.7, batch), 20, 600).astype(int)
        if device != "cpu":
            label = torch.from_numpy(rng.integers(0, CLASSES, batch))
            made.append(drawn_on_device(steps, label, device, number))
            continue
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


def drawn_on_device(steps: NDArray[np.int64], label: Tensor, device: str, seed: int) -> dict[str, Any]:
    """A batch of `make_batches` whose features the device draws: the host would take minutes."""
    generator = torch.Generator(device).manual_seed(seed)
    made: dict[str, Any] = {"packed": {}, "label": label.to(device), "steps": steps}
    for modality, lengths in (("audio", steps), ("video", steps // 2)):
        offsets = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
        size = (int(offsets[-1]), DIMS[modality])
        values = torch.randn(size, generator=generator, device=device).to(torch.float16)
        made["packed"][modality] = Ragged(values, offsets.to(device), offsets)
        made[modality] = list(values.split(lengths.tolist()))
    return made


def make_model(dim: int, device: str) -> AWTPN:
    config = ModelConfig(shared_dim=dim, modalities=scaled_by_width(DIMS, dim), **FORMER_MODEL)
    return AWTPN(config, DIMS, [str(c) for c in range(CLASSES)]).to(device)


def scaled_by_width(modalities: Iterable[str], dim: int) -> dict[str, ModalitySettings]:
    """Settings of modalities whose distances do not grow with D."""
    return {m: ModalitySettings(distance_scale=1 / dim) for m in modalities}


def packed_loss(output: Any, label: Tensor, losses: LossConfig) -> Tensor:
    """All loss terms in their default forms; the negative of each utterance is the one before it."""
    n, modalities = len(label), list(output.streams)
    pairs, every = list(combinations(modalities, 2)), dict.fromkeys(DRAWS, float(n))
    counts = LossNormalizers(
        n, dict.fromkeys(modalities, n), dict.fromkeys(pairs, n), dict.fromkeys(pairs, every), n
    )
    row = torch.arange(n, device=label.device).roll(1)
    rows = dict.fromkeys(DRAWS, row)
    pools = {pair: NegativePool(output.streams[pair[1]].mean, rows) for pair in pairs}
    return total_loss(loss_terms(output, label, pools, counts, losses), losses)


def packed_step(dim: int, device: str, autocast: Callable[[], Any]) -> Step:
    """This project's training step."""
    model, losses = make_model(dim, device), LossConfig()
    optimizer = make_optimizer(model, OptimConfig())

    def step(batch: dict[str, Any]) -> None:
        with autocast():
            output = model(batch["packed"])
        update(model, optimizer, packed_loss(output, batch["label"], losses))

    return step


def padded_step(dim: int, device: str, autocast: Callable[[], Any]) -> Step:
    """The published training step, which pads each batch as the published collate function does."""
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
    set_grad_norm(optimizer, nn.utils.clip_grad_norm_(model.parameters(), 1.0))
    optimizer.step()
    optimizer.zero_grad()


FORMS = {"padded": padded_step, "packed": packed_step}


def make_step(form: str, dim: int, setting: Setting) -> Step:
    torch.manual_seed(0)
    return FORMS[form](dim, setting.device, setting.autocast)


def utterances_per_s(step: Step, batches: list[dict[str, Any]], device: str) -> float:
    start = time.perf_counter()
    for batch in batches:
        step(batch)
    synchronize(device)
    return sum(len(b["label"]) for b in batches) / (time.perf_counter() - start)


def compare(
    forms: Sequence[str], dim: int, batches: list[dict[str, Any]], setting: Setting, rounds: int
) -> dict[str, list[float]]:
    """Utterances per second of each form in interleaved rounds; [] for a form that runs out of memory."""
    steps = {form: make_step(form, dim, setting) for form in forms}
    rates: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(rounds + 1):  # round 0 is the warm-up
        for form in list(steps):
            try:
                rate = utterances_per_s(steps[form], batches, setting.device)
            except torch.OutOfMemoryError:
                del steps[form]
                rates[form] = []
                torch.cuda.empty_cache()
                continue
            if number:
                rates[form].append(rate)
    return rates


def memory_growth(form: str, dim: int, batch: int, setting: Setting) -> float | None:
    """Growth of peak memory by the training steps, in MiB; None if it ran out of memory.

    A GPU's allocator counts what is in use, a CPU's process needs to be new: there a separate one measures.
    """
    if setting.device == "cuda":
        try:
            return growth_here(form, dim, batch, setting)
        except torch.OutOfMemoryError:
            return None
        finally:
            torch.cuda.empty_cache()
    command = [sys.executable, "-m", "awtpn.bench.step", "--memory_of", form]
    command += ["--dims", str(dim), "--batches", str(batch), "--device", setting.device]
    command += ["--precision", setting.precision, "--threads", str(setting.threads)]
    ran = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    if "OutOfMemoryError" in ran.stderr:
        return None
    if ran.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ran.stderr[-2000:]}")
    return float(ran.stdout.split()[-1])


def growth_here(form: str, dim: int, batch: int, setting: Setting) -> float:
    """`memory_growth` of this process, in which no such step has run on a CPU before."""
    batches = make_batches(batch, setting.device)
    step = make_step(form, dim, setting)
    # A small step first: libraries that load at first use, and Adam's moments, are not counted.
    step(make_batches(2, setting.device)[0])
    before = start_peak(setting.device)
    utterances_per_s(step, batches, setting.device)
    return (read_peak(setting.device) - before) / 2**20


def run(
    setting: Setting,
    dims: Sequence[int],
    batches: Sequence[int],
    rounds: int,
    baseline: bool = True,
    memory: bool = True,
) -> str:
    """Measure and return a table in Markdown; with `baseline`, the published step too."""
    forms = list(FORMS) if baseline else ["packed"]
    columns = ["D", "batch", "padding", *(f"{form} utt/s" for form in forms)]
    columns += ["ratio", "lowest - highest"] if baseline else ["lowest - highest"]
    columns += ["packed GFLOP/s", *(f"{form} MiB" for form in forms if memory), "attention"]
    rows = []
    for dim in dims:
        for batch in batches:
            made = make_batches(batch, setting.device)
            with recorded_forms() as ran:
                rates = compare(forms, dim, made, setting, rounds)
            if setting.device == "cuda":
                torch.cuda.empty_cache()  # the processes of `memory_growth` need the memory
            growth = {form: memory_growth(form, dim, batch, setting) for form in forms if memory}
            rows.append([*row(dim, batch, made, rates, growth), " and ".join(sorted(ran))])
            print(" | ".join(rows[-1]), file=sys.stderr)
    title = "## Training step: packed" + (" beside padded" if baseline else "")
    return "\n".join(
        [
            f"{title}, {setting.precision}",
            "",
            table(columns, rows, "lr"),
            "",
            "Forward, losses, backward, clipping, AdamW; batches on the device. The end-to-end rows include "
            "the trainer's other work in a step (reductions over ranks, negatives, fingerprints, metrics). "
            f"Medians of {rounds} interleaved rounds; FLOPs are those that the network needs; "
            "MiB: growth of peak memory after a first small step. "
            "Attention: the form that ran in the packed step.",
            "",
        ]
    )


def row(
    dim: int,
    batch: int,
    made: list[dict[str, Any]],
    rates: dict[str, list[float]],
    growth: dict[str, float | None],
) -> list[str]:
    waste = np.mean([b["steps"].max() * batch / b["steps"].sum() for b in made])
    cells = [str(dim), str(batch), f"{waste:.2f}x"]
    cells += [f"{statistics.median(r):.0f}" if r else "out of memory" for r in rates.values()]
    packed = rates["packed"]
    if "padded" in rates:
        ratios = [p / q for p, q in zip(packed, rates["padded"], strict=False)]
        cells += [f"{statistics.median(ratios):.2f}x" if ratios else "-"]
        cells += [f"{min(ratios):.2f} - {max(ratios):.2f}" if ratios else "-"]
    else:
        cells += [f"{min(packed):.0f} - {max(packed):.0f}" if packed else "-"]
    flops = sum(
        sum(step_flops({m: r.host_lengths for m, r in b["packed"].items()}, DIMS, dim, CLASSES).values())
        for b in made
    )
    each = flops / sum(len(b["label"]) for b in made)
    cells += [f"{statistics.median(packed) * each / 1e9:,.0f}" if packed else "-"]
    return cells + ["out of memory" if g is None else f"{g:,.0f}" for g in growth.values()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", type=short_name, default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--dims", type=int, nargs="+", default=[256])
    parser.add_argument("--batches", type=int, nargs="+", default=[32])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory_of", choices=list(FORMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setting = Setting(options.device, options.precision, options.threads)
    if options.memory_of:
        print(growth_here(options.memory_of, options.dims[0], options.batches[0], setting))
        return
    about = describe(options.device, options.threads)
    print(f"{about}\n\n{run(setting, options.dims, options.batches, options.rounds)}")


if __name__ == "__main__":
    main()
