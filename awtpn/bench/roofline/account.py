"""Benchmark of each part of a training step on its own, beside its floor (`awtpn.bench.roofline.floor`).

The device's peaks are measured too: with a large matrix product in the precision of the part, and with a
large copy, whose bytes count as read and as written.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from awtpn.bench.machine import synchronize
from awtpn.bench.roofline.floor import Cost, Peak, bound_by, floor_s, step_cost, total
from awtpn.bench.step import CLASSES, DIMS, Setting, make_batches, make_model, make_step, packed_loss
from awtpn.learning.optimizer import make_optimizer, set_grad_norm
from awtpn.learning.settings import LossConfig, OptimConfig
from awtpn.model.blocks import pooled_and_mean
from awtpn.model.compute.flops import PARTS
from awtpn.model.network import AWTPN, ModalityOutput, ModelOutput
from shards.safe_io.markdown import code, table

# Parts whose products are in train.precision; the others are always float32.
IN_PRECISION = ("ses", "attention")
PRODUCT = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}


def measure_peak(device: str, dtype: torch.dtype, repeats: int = 5) -> Peak:
    """The best rates of a large product of `dtype` and of a large copy on this machine."""
    n = PRODUCT[device]
    a = torch.randn(n, n, device=device).to(dtype)
    source = torch.ones(COPY_BYTES[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = min(times(lambda: a @ a, device, repeats))
    copy = min(times(lambda: target.copy_(source), device, repeats))
    return Peak(2 * n**3 / product, 2 * source.nbytes / copy)


def times(work: Callable[[], Any], device: str, repeats: int) -> list[float]:
    """Seconds of each run of `work`, after a warm-up run."""
    found = []
    for number in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        if number:
            found.append(time.perf_counter() - start)
    return found


def part_work(model: AWTPN, batch: dict[str, Any], setting: Setting) -> dict[str, Callable[[], None]]:
    """A function for each part that runs its forward and backward alone, on the output of the part before.

    Inputs that get gradients in a training step get them here. The optimizer's gradients are ones.
    """
    packed, label, losses = batch["packed"], batch["label"], LossConfig()
    with torch.no_grad(), setting.autocast():
        output = model(packed)

    def inputs(m: str) -> ModalityOutput:
        """The modality's output with h, distances and weights as leaves, for the parts that take them."""
        s = output.streams[m]
        h, distances, weights = (t.detach().clone().requires_grad_() for t in (s.h, s.distances, s.weights))
        return replace(s, h=h, distances=distances, weights=weights)

    leaves = {m: inputs(m) for m in DIMS}

    def backward(results: list[Tensor], gradients: list[Tensor]) -> None:
        torch.autograd.backward(results, gradients)
        model.zero_grad()
        for s in leaves.values():
            s.h.grad = s.distances.grad = s.weights.grad = None

    def ses() -> None:
        with setting.autocast():
            made = [model.project(m, model.standardise[m](packed[m].values)) for m in DIMS]
        backward(made, [torch.ones_like(h) for h in made])

    def distances() -> None:
        with setting.autocast():
            made = [model.distances(m, leaves[m].h) for m in DIMS]
        backward(made, [torch.ones_like(d) for d in made])

    def attention() -> None:
        with setting.autocast():
            made = [
                model.awm[m](s.h, s.distances, s.offsets, s.utterance, packed[m].host_offsets)
                for m, s in leaves.items()
            ]
        backward(made, [torch.ones_like(w) for w in made])

    def losses_part() -> None:
        with setting.autocast():
            streams = {}
            for m, s in leaves.items():
                wide = s.h.to(s.distances.dtype)
                pooled, mean = pooled_and_mean(wide, s.weights, s.offsets, s.utterance)
                streams[m] = replace(s, pooled=pooled, mean=mean)
            fused = model.fuse(streams)
            logits = model.classifier(fused.to(model.classifier.weight.dtype)).to(fused.dtype)
        backward(
            [packed_loss(ModelOutput(logits, streams), label, losses)], [torch.ones((), device=label.device)]
        )

    optimizer = make_optimizer(model, OptimConfig(lr=1e-12))
    gradients = [torch.ones_like(p) for p in model.parameters()]

    def optimize() -> None:
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient
        set_grad_norm(optimizer, nn.utils.clip_grad_norm_(model.parameters(), 1e9))
        optimizer.step()
        optimizer.zero_grad()

    return dict(zip(PARTS, (ses, distances, attention, losses_part, optimize), strict=True))


def run(setting: Setting, dims: Sequence[int], batches: Sequence[int], rounds: int) -> str:
    """Measure and return a table for each size, in Markdown."""
    peaks = {dtype: measure_peak(setting.device, dtype) for dtype in {torch.float32, setting.dtype}}
    reached = ", ".join(f"{p.flops_per_s / 1e9:,.0f} GFLOP/s in {_name(d)}" for d, p in peaks.items())
    copied = max(p.bytes_per_s for p in peaks.values()) / 1e9
    lines = [
        f"## Roofline account of a step, {setting.precision}",
        "",
        f"Peaks measured here: {reached}; {copied:,.1f} GB/s, read and written.",
        "",
    ]
    for dim in dims:
        for batch in batches:
            lines += [f"D {dim}, batch {batch}:", "", *account(setting, dim, batch, peaks, rounds), ""]
            print("\n".join(lines[-10:]), file=sys.stderr)
    return "\n".join(lines)


def account(
    setting: Setting, dim: int, batch: int, peaks: Mapping[torch.dtype, Peak], rounds: int
) -> list[str]:
    """A table for one size: FLOPs and bytes, floor, measured time; each part, then the whole step."""
    made = make_batches(batch, setting.device)[0]
    lengths = {m: made["packed"][m].host_lengths for m in DIMS}
    torch.manual_seed(0)
    model = make_model(dim, setting.device)
    on_gpu = setting.device == "cuda"  # CPUs keep the scores of batches of these sizes
    cost = step_cost(lengths, DIMS, dim, CLASSES, dtype=setting.dtype, recompute=on_gpu)
    try:
        took = {
            part: times(work, setting.device, rounds)
            for part, work in part_work(model, made, setting).items()
        }
        step = make_step("packed", dim, setting)
        whole = times(lambda: step(made), setting.device, rounds)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return ["out of memory"]
    of_part = {p: peaks[setting.dtype if p in IN_PRECISION else torch.float32] for p in PARTS}
    rows = [_row(p, cost[p], of_part[p], statistics.median(took[p])) for p in PARTS]
    floor = sum(floor_s(cost[p], of_part[p]) for p in PARTS)
    together = statistics.median(whole)
    everything = total(cost)
    rows.append(
        [
            "whole step",
            f"{everything.flops / 1e9:,.2f}",
            f"{everything.bytes / 1e6:,.1f}",
            "",
            f"{floor * 1e3:,.3f}",
            f"{together * 1e3:,.3f}",
            f"{floor / together:.0%}",
            f"{everything.flops / together / 1e9:,.0f}",
            f"{everything.bytes / together / 1e9:,.1f}",
        ]
    )
    columns = ["part", "GFLOP", "MB", "bound by", "floor, ms", "measured, ms", "floor / measured"]
    return table([*columns, "GFLOP/s", "GB/s"], rows, "lr").splitlines()


def _row(part: str, cost: Cost, peak: Peak, seconds: float) -> list[str]:
    floor = floor_s(cost, peak)
    return [
        part,
        f"{cost.flops / 1e9:,.2f}",
        f"{cost.bytes / 1e6:,.1f}",
        bound_by(cost, peak),
        f"{floor * 1e3:,.3f}",
        f"{seconds * 1e3:,.3f}",
        f"{floor / seconds:.0%}",
        f"{cost.flops / seconds / 1e9:,.0f}",
        f"{cost.bytes / seconds / 1e9:,.1f}",
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def profile(setting: Setting, dim: int, batch: int, rows: int = 12) -> str:
    """torch.profiler's summary of three steps: the `rows` most expensive operations; Markdown."""
    batches, step = make_batches(batch, setting.device)[:3], make_step("packed", dim, setting)
    for made in batches:
        step(made)
    synchronize(setting.device)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if setting.device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profiler:
        for made in batches:
            step(made)
        synchronize(setting.device)
    order = f"self_{'device' if setting.device == 'cuda' else 'cpu'}_time_total"
    found = sorted(profiler.key_averages(), key=lambda event: -getattr(event, order))
    whole = sum(getattr(event, order) for event in found) or 1
    shown = [
        [
            code(event.key[:60]),
            f"{getattr(event, order) / 3e3:.2f}",
            f"{getattr(event, order) / whole:.1%}",
            f"{event.count / 3:.0f}",
        ]
        for event in found[:rows]
    ]
    return "\n".join(
        [
            f"## Profile of a step: D {dim}, batch {batch}, {setting.precision}",
            "",
            table(["operation", "ms a step", "of all", "calls a step"], shown, "lr"),
            "",
        ]
    )
