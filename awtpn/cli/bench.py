"""`awtpn bench`: the benchmarks' tables, measured on this machine."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from awtpn.config.option_types import path_argument
from shards.format.precision_names import short_name

PARTS = (
    "loader",
    "recordings",
    "step",
    "baseline",
    "end-to-end",
    "finetune",
    "attention",
    "roofline",
    "transfers",
    "staging",
)
BENCH_HELP = """Measure this machine and print tables in Markdown.

parts:
  loader      utterances/s of this stream, of a bare loop and of other libraries that are installed
  recordings  what 10,000 utterances cost as features, as sound and as pictures, and how fast they are read
  step        forward, losses, backward and update: utterances/s, FLOP/s, peak memory
  baseline    the same beside a plain re-implementation of the published, padded and dense step
  end-to-end  the trainer's loop with its stream, and the share of time that it waits for data
  finetune    training an encoder end to end, beside Hugging Face's Trainer with the same model and losses
  attention   each implementation of the reliability attention, by length; on a GPU beside torch's kernels
  roofline    FLOPs and bytes of each part against the device's measured peaks, and a profile
  transfers   copies to the GPU: the bus, and the share of it that the step takes
  staging     how long a checkpoint's copies to the host take
"""
# Default sizes: the published width on a CPU; from small to large on a GPU.
DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"precision": "fp32", "dim": [256], "batch": [32]},
    "cuda": {"precision": "bf16", "dim": [256, 1024, 4096], "batch": [64, 256, 1024]},
}
QUICK_UTTERANCES = 40


def add_bench(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure how fast this machine reads and trains, and where the time goes",
        description=BENCH_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help="what to measure (default: all)",
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--precision",
        type=short_name,
        choices=["fp32", "bf16"],
        help="default: fp32 on a CPU, bf16 on a GPU",
    )
    parser.add_argument("--dim", type=int, nargs="+", help="shared dims (default: 256; GPU: 256 1024 4096)")
    parser.add_argument("--batch", type=int, nargs="+", help="batch sizes (default: 32; GPU: 64 256 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default: 5)")
    parser.add_argument("--threads", type=int, help="torch's CPU threads (default: all cores)")
    parser.add_argument(
        "--scratch",
        type=path_argument,
        help="folder for the corpora, which need 5 GB and stay there (default: a temporary one)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round on little data: a test of the command, not a measurement",
    )
    parser.add_argument("--out", type=path_argument, metavar="FILE.md", help="also write the tables there")
    parser.set_defaults(command=run_bench)


def run_bench(options: argparse.Namespace) -> None:
    import torch

    from awtpn.bench.machine import describe
    from awtpn.bench.step import Setting
    from shards.cores import usable_cores
    from shards.storage.credentials import redact_command

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device cuda: PyTorch sees no GPU here; install its CUDA build, or use --device cpu"
        )
    threads = options.threads or usable_cores()
    torch.set_num_threads(threads)
    setting = Setting(device, options.precision or DEFAULTS[device]["precision"], threads)
    command = f"`{redact_command([*options.program.typed, *options.words])}`"
    texts = ["# Benchmarks of this machine", "", command, "", describe(device, threads), ""]
    with tempfile.TemporaryDirectory(prefix="awtpn-bench-") as temporary:
        scratch = options.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        for part in PARTS:
            if part in options.parts and not (part == "step" and "baseline" in options.parts):
                print(f"measuring: {part}", file=sys.stderr, flush=True)
                texts.append(measure(part, setting, options, scratch))
                print(texts[-1], flush=True)
                if options.out:  # after each part, so that a later failure loses nothing
                    write(options.out, texts, setting.device)


def write(file: Path, texts: list[str], device: str) -> None:
    from awtpn.run.atomic_write import write_atomically

    unmeasured = (
        [] if device == "cuda" else ["GPU rows: unmeasured, needs CUDA; run `awtpn bench --device cuda`.", ""]
    )
    write_atomically(file, "\n".join([*texts, *unmeasured]))


def measure(part: str, setting: Any, options: argparse.Namespace, scratch: Path) -> str:
    """One part's Markdown."""
    from awtpn.bench import attention, end_to_end, finetune, loader, recordings, step
    from awtpn.bench.gpu import staging, transfers
    from awtpn.bench.roofline import account as roofline_account

    default = DEFAULTS[setting.device]
    dims, batches = options.dim or default["dim"], options.batch or default["batch"]
    rounds = 1 if options.quick else options.rounds
    count = QUICK_UTTERANCES if options.quick else loader.UTTERANCES
    if part == "loader":
        return loader.run(scratch, rounds, count)
    if part == "recordings":
        return recordings.run(scratch, rounds, 20 if options.quick else recordings.UTTERANCES)
    if part in ("step", "baseline"):
        return step.run(setting, dims, batches, rounds, part == "baseline", memory=not options.quick)
    if part == "end-to-end":
        least = 1 if options.quick else None
        sizes = [(d, b) for d in dims for b in batches]
        return "\n".join(end_to_end.run(setting, d, b, scratch, count, rounds, least) for d, b in sizes)
    if part == "finetune":
        return finetune.run(
            setting, scratch, rounds, finetune.BATCH if options.quick else finetune.UTTERANCES
        )
    if part == "attention":
        return attention.run(setting, dims, rounds, options.quick)
    if part == "transfers":
        return transfers.run(setting, dims, batches, rounds)
    if part == "staging":
        return staging.run(setting, dims, rounds)
    return "\n".join(
        [
            roofline_account.run(setting, dims, batches, rounds),
            *(roofline_account.profile(setting, d, b) for d in dims for b in batches[:1]),
        ]
    )
