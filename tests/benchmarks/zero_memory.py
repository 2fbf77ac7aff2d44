"""Benchmark of peak memory per rank, beside the estimate of `awtpn doctor --memory`.

    python tests/benchmarks/zero_memory.py --out tests/benchmarks/results

Each row is a run of launch/train.py with configs/large.yaml at a smaller width, on CPU ranks. The measured
value is the growth of a rank's resident memory from before its model is built to its peak in training, before
the first checkpoint (VmHWM, Linux); the largest of all ranks. PyTorch's compiler, which optimizers import, is
loaded before. Environment variables make the allocator return freed memory at once (MALLOC_*_THRESHOLD_), and
keep oneDNN from caching scratch memory (*_CAPACITY), which it would do in bf16 for every shape that it saw.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import platform
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

ENGINES = ("none", "ddp", "zero0", "zero1", "zero2", "zero3")
CONFIG = ROOT / "configs" / "large.yaml"
STEPS, GLOBAL, MICRO = 3, 16, 8
LIMIT_S = 900.0  # of one run
COLUMNS = ("ranks", "engine", "precision", "measured", "estimated", "off by", "peak in")
COLUMNS += ("measured, saving", "estimated, saving")
ALLOCATOR = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1",
    "LRU_CACHE_CAPACITY": "1",
}


def write_corpus(folder: Path, utterances: int = GLOBAL * STEPS, median: int = 40) -> str:
    """Noise of log-normal lengths: audio [M, 1024], video [M / 2, 512]."""
    import shards

    rng = np.random.default_rng(0)

    def samples() -> Iterator[shards.Sample]:
        for i in range(utterances):
            m = int(np.clip(rng.lognormal(np.log(median), 0.57), 10, 5 * median))
            features = {
                name: rng.standard_normal((steps, dim), np.float32)
                for name, steps, dim in (("audio", m, 1024), ("video", m // 2, 512))
            }
            yield shards.Sample(f"u{i:04d}", "train", "abcdefg"[i % 7], features)

    shards.pack(samples(), str(folder), classes=list("abcdefg"), progress=False)
    return str(folder)


def settings(engine: str, precision: str, dim: int, corpus: str) -> list[str]:
    """The run's overrides of configs/large.yaml; `awtpn doctor --memory` takes the same."""
    given: dict[str, Any] = {
        "data.train": corpus,
        "model.shared_dim": dim,
        "train.global_batch_size": GLOBAL,
        "train.micro_batch_size": MICRO,
        "train.precision": precision,
        "train.epochs": 1,
        "train.zero_stage": engine[-1] if engine.startswith("zero") else "null",
    }
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def measure(
    engine: str, precision: str, ranks: int, overrides: list[str], folder: Path, config: Path = CONFIG
) -> dict[str, float]:
    """Run it; returns the growth in bytes of the largest rank in training, and of rank 0 while it saved.

    Raises:
        RuntimeError: the run failed; ends with its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    launcher = [sys.executable]
    if engine != "none":  # under torchrun a single rank gets DDP too
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, __file__, "--rank_of", str(folder), "--config", str(config), *overrides]
    command += ["--run.dir", str(folder / "run")]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "DS_", "TORCHELASTIC_"))}
    kept = {k: v for k, v in kept.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    ran = subprocess.run(command, env=kept | ALLOCATOR, capture_output=True, text=True, timeout=LIMIT_S)
    found = [folder / f"rank-{rank}.json" for rank in range(ranks)]
    if ran.returncode or not all(path.exists() for path in found):
        raise RuntimeError(
            f"{engine} {precision} on {ranks} ranks failed:\n{(ran.stdout + ran.stderr)[-3000:]}"
        )
    figures = [json.loads(path.read_text()) for path in found]
    return {
        "training": max(figure["training"] for figure in figures),
        "saving": figures[0]["saving"],
    }


def run_rank(folder: Path, argv: list[str]) -> None:
    """Run launch/train.py, and read this process's memory before the model is built and when it saves."""
    # The first optimizer imports PyTorch's compiler, some 150 MB of code: load it before the first reading.
    importlib.import_module("torch._dynamo")
    if any(word.startswith("--encoder.") for word in argv):
        import_encoders()
    from awtpn.training import setup, trainer

    make, save = setup.make_model, trainer.save
    before: list[int] = []

    def build(*args: Any, **kwargs: Any) -> Any:
        if not before:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            before.append(resident("VmRSS"))
            Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM
        return make(*args, **kwargs)

    def measure_and_save(run: trainer.Run, *args: Any, **kwargs: Any) -> None:
        training = resident("VmHWM") - before[0]
        save(run, *args, **kwargs)
        figures = {"training": training, "saving": resident("VmHWM") - before[0]}
        file = folder / f"rank-{run.world.rank}.json"
        if not file.exists():  # a later peak of training would include this save's
            file.write_text(json.dumps(figures))

    setup.make_model, trainer.save = build, measure_and_save  # type: ignore[assignment, misc]
    script = ROOT / "launch" / "train.py"
    sys.argv = [str(script), *argv]
    runpy.run_path(str(script), run_name="__main__")


def import_encoders() -> None:
    """Load the libraries of encoders, some 100 MB of code."""
    for module in ("peft", "awtpn.model.encoders"):
        importlib.import_module(module)
    transformers = importlib.import_module("transformers")
    for name in ("Wav2Vec2Model", "Wav2Vec2FeatureExtractor", "ViTModel", "ViTImageProcessor"):
        getattr(transformers, name)  # imports its module


def resident(kind: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) << 10


def estimate(
    engine: str, ranks: int, overrides: list[str], config_file: Path = CONFIG
) -> tuple[float, float, str]:
    """The estimate of `awtpn doctor --memory`: bytes in training and at saving, and the peak phase."""
    from awtpn.bench.memory_data import data_from_corpus
    from awtpn.bench.memory_estimate import peak, phase_bytes, saving_bytes
    from awtpn.bench.memory_table import make_workload
    from awtpn.config.command_line import parse_command_line
    from awtpn.distributed.batch_layout import make_layout

    config, _ = parse_command_line(["--config", str(config_file), *overrides])
    layout = make_layout(config.train.global_batch_size, config.train.micro_batch_size, ranks)
    work = make_workload(config, layout, data_from_corpus(config))
    found = phase_bytes(work, engine, ranks, config.train.precision)
    phase, most = peak(found)
    return most, max(most, sum(found["rest"].values()) + saving_bytes(work, engine)), phase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, help="folder for zero-memory-cpu-<date>.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        text = run(options, Path(scratch))
    print(text)
    if options.out:
        (options.out / f"zero-memory-cpu-{date.today()}.md").write_text(text)


def run(options: argparse.Namespace, scratch: Path) -> str:
    from shards.safe_io.markdown import table

    corpus = write_corpus(scratch / "corpus")
    rows = []
    for ranks in options.ranks:
        for engine in options.engines:
            if engine == ("ddp" if ranks == 1 else "none"):
                continue
            for precision in options.precisions:
                overrides = settings(engine, precision, options.dim, corpus)
                got = measure(engine, precision, ranks, overrides, scratch / f"{ranks}-{engine}-{precision}")
                estimated, saving, phase = estimate(engine, ranks, overrides)
                training = [f"{got['training'] / 1e6:.0f}", f"{estimated / 1e6:.0f}"]
                training += [f"{estimated / got['training'] - 1:+.1%}", phase]
                kept = [f"{got['saving'] / 1e6:.0f}", f"{saving / 1e6:.0f}"]
                rows.append([str(ranks), engine, precision, *training, *kept])
                print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    return (
        "\n".join(
            [
                *heading(options),
                table(COLUMNS, rows, "rllrrrlr"),
                "",
                "## Computed for a cluster of GPUs",
                "",
                computed(),
            ]
        )
        + "\n"
    )


def computed() -> str:
    """The output of `awtpn doctor --memory` for the whole configuration, with features of usual widths."""
    from awtpn.bench.memory_table import report

    words = ["--ranks", "8", "64", "512", "--device", "cuda", "--train.global_batch_size", "8192"]
    words += ["--steps", "audio=120", "video=60", "--features", "audio=1024", "video=512"]
    text = report([str(CONFIG), *words]).replace(f"{ROOT}{os.sep}", "")
    return f"`awtpn doctor --memory configs/large.yaml {' '.join(words)}`\n\n{text}"


def heading(options: argparse.Namespace) -> list[str]:
    import deepspeed
    import torch

    return [
        f"# Peak memory per rank: configs/large.yaml at shared_dim {options.dim}",
        "",
        f"{date.today()}; {platform.system()} {platform.release()}, torch {torch.__version__}, DeepSpeed "
        f"{deepspeed.__version__}; global batch {GLOBAL}, micro-batch {MICRO}, {STEPS} steps; "
        f"`python tests/benchmarks/zero_memory.py --dim {options.dim}`.",
        "",
        "Growth of a rank's resident memory in MB, from before its model is built to the peak of training "
        "(largest rank), and to that of rank 0's first checkpoint.",
        "",
    ]


if __name__ == "__main__":
    if "--rank_of" in sys.argv:
        run_rank(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
