"""Utterances per second of this project's stream, of its peers and of a bare loop, over the same utterances.

    python tests/benchmarks/loader.py --scratch /somewhere/with/5GB --out tests/benchmarks/results

The peers come with `pip install -e .[bench]`; one that is missing is left out of the table, and said to be.

The corpus: 3,000 utterances, 1.07 GB; audio [M, 1024] and video [M / 2, 512] float16, M log-normal of median
120, 20 to 600. Each reader makes batches of 32 in shuffled order, in one process without workers and with one
thread of torch's own: the peers padded ones, as their users do, this project's stream packed ones. Every
figure comes from a process of its own that reads one epoch to warm up and times the next; rounds of all
readers are interleaved, so that what else the machine does meets all alike, and medians are told. Cold
figures are taken after the kernel was asked to forget the files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

import shards

UTTERANCES, BATCH, SHARD_BYTES = 3_000, 32, 64 << 20
AUDIO, VIDEO = 1024, 512
PEERS = {"webdataset": "webdataset", "mosaicml": "mosaicml-streaming", "litdata": "litdata"}


# --- The corpus, in each format -------------------------------------------------------------------


def lengths() -> np.ndarray:
    """Audio steps per utterance, [UTTERANCES]."""
    drawn = np.random.default_rng(1).lognormal(np.log(120), 0.57, UTTERANCES)
    return np.clip(drawn, 20, 600).astype(int)


def utterance(i: int) -> dict[str, Any]:
    """Utterance i: noise, cut from a bank so that making it takes no time."""
    m = int(lengths()[i])
    if not BANK:
        BANK.append(np.random.default_rng(1).standard_normal(4 << 20, np.float32).astype(np.float16))
    first = i * 997 % (BANK[0].size - 600 * AUDIO)
    audio = BANK[0][first : first + m * AUDIO].reshape(m, AUDIO)
    video = BANK[0][first : first + m // 2 * VIDEO].reshape(m // 2, VIDEO)
    return {"audio": audio, "video": video, "label": i % 4, "key": f"u{i:06d}"}


BANK: list[np.ndarray] = []


def write_shards(folder: Path) -> None:
    samples = (
        shards.Sample(u["key"], "train", str(u["label"]), {"audio": u["audio"], "video": u["video"]})
        for u in map(utterance, range(UTTERANCES))
    )
    shards.pack(samples, str(folder), classes=list("0123"), shard_bytes=SHARD_BYTES, progress=False)


def write_mosaicml(folder: Path) -> None:
    streaming = import_streaming()
    columns = {"audio": "ndarray:float16", "video": "ndarray:float16", "label": "int", "key": "str"}
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for i in range(UTTERANCES):
            writer.write(utterance(i))


def write_litdata(folder: Path) -> None:
    import litdata

    litdata.optimize(
        utterance, list(range(UTTERANCES)), str(folder), chunk_bytes=SHARD_BYTES, num_workers=1, verbose=False
    )


def import_streaming() -> Any:
    """mosaicml-streaming; it imports torchvision for data sets of images, which may not be there."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in (f"torchvision{n}" for n in ("", ".datasets", ".transforms", ".transforms.functional")):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
        sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
    import streaming

    return streaming


# --- Readers: each opens the corpus and gives, per epoch, the number of utterances of each batch --------

Epoch = Callable[[int], Iterator[int]]


def padded(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
    """What users of the peers make of a batch: padded features, lengths, labels."""
    audio = [torch.as_tensor(s["audio"]) for s in samples]
    video = [torch.as_tensor(s["video"]) for s in samples]
    return (
        pad_sequence(audio, batch_first=True),
        pad_sequence(video, batch_first=True),
        torch.tensor([len(a) for a in audio]),
        torch.tensor([len(v) for v in video]),
        torch.tensor([int(s["label"]) for s in samples]),
    )


def read_stream(scratch: Path, prefetch: int) -> Epoch:
    stream = shards.FeatureStream(str(scratch / "shards"), global_batch_size=BATCH, prefetch=prefetch)
    return lambda epoch: (len(batch) for batch in stream.epoch(epoch))


def read_webdataset(scratch: Path) -> Epoch:
    import webdataset

    tars = sorted(str(path) for path in (scratch / "shards").glob("*.tar"))

    def collate(rows: list[tuple[Any, ...]]) -> tuple[torch.Tensor, ...]:
        return padded([{"audio": a, "video": v, "label": j["label"]} for a, v, j in rows])

    def epoch(number: int) -> Iterator[int]:
        pipeline = (
            webdataset.WebDataset(tars, shardshuffle=len(tars), seed=number)
            .shuffle(1_000)
            .decode()
            .to_tuple("audio.npy", "video.npy", "json")
            .batched(BATCH, collation_fn=collate)
        )
        return (len(batch[0]) for batch in pipeline)

    return epoch


def read_mosaicml(scratch: Path) -> Epoch:
    streaming = import_streaming()
    streaming.base.util.clean_stale_shared_memory()
    folder = str(scratch / "mosaicml")
    dataset = streaming.StreamingDataset(local=folder, shuffle=True, batch_size=BATCH)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, collate_fn=padded)
    return lambda epoch: (len(batch[0]) for batch in loader)


def read_litdata(scratch: Path) -> Epoch:
    import litdata

    # By default it decodes a window of neighbours with each utterance, which makes it several times slower.
    dataset = litdata.StreamingDataset(str(scratch / "litdata"), shuffle=True, batch_decode=1)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=padded)
    return lambda epoch: (len(batch[0]) for batch in loader)


def read_bare(scratch: Path) -> Epoch:
    """One thread, one `preadv` per array, into two warm buffers by turns; no batches come of it."""
    files, arrays = [], []
    for path in sorted((scratch / "shards").glob("*.tar")):
        index = np.load(path.with_suffix(".index.npz"))
        files.append(os.open(path, os.O_RDONLY))
        a, v = index["steps.audio"] * 2 * AUDIO, index["steps.video"] * 2 * VIDEO
        columns = index["offset.audio"], a, index["offset.video"], v
        arrays += [(files[-1], *row) for row in np.stack(columns, axis=1).tolist()]
    buffers = [memoryview(bytearray(BATCH * 600 * 2 * (AUDIO + VIDEO))) for _ in range(2)]

    def epoch(number: int) -> Iterator[int]:
        order = np.random.default_rng(number).permutation(len(arrays)).tolist()
        for first in range(0, len(order), BATCH):
            buffer, done = buffers[first // BATCH % 2], 0
            for i in order[first : first + BATCH]:
                fd, *places = arrays[i]
                for offset, size in zip(places[::2], places[1::2], strict=True):
                    os.preadv(fd, [buffer[done : done + size]], offset)
                    done += size
            yield len(order[first : first + BATCH])

    return epoch


READERS: dict[str, Callable[[Path], Epoch]] = {
    "bare preadv loop": read_bare,
    "this stream": lambda scratch: read_stream(scratch, prefetch=4),
    "this stream, prefetch=0": lambda scratch: read_stream(scratch, prefetch=0),
    "litdata": read_litdata,
    "mosaicml": read_mosaicml,
    "webdataset": read_webdataset,
}
WRITERS = {"shards": write_shards, "mosaicml": write_mosaicml, "litdata": write_litdata}


# --- One measurement, in a process of its own -----------------------------------------------------


def measure(reader: str, scratch: Path) -> dict[str, float]:
    """Utterances per second of a second epoch, and by how many bytes reading raised the peak of memory."""
    before = resident("VmRSS")
    epoch = READERS[reader](scratch)
    first, second = (timed(lambda number=number: sum(epoch(number))) for number in range(2))
    return {"first": UTTERANCES / first, "second": UTTERANCES / second, "memory": resident("VmHWM") - before}


def measure_cold(reader: str, scratch: Path) -> dict[str, float]:
    """Bytes per second of `cat` or of a first epoch, over files that the kernel was asked to forget."""
    tars = sorted((scratch / "shards").glob("*.tar"))
    for path in tars:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    if reader == "cat":
        cat = ["cat", *map(str, tars)]
        seconds = timed(lambda: subprocess.run(cat, stdout=subprocess.DEVNULL, check=True) and UTTERANCES)
    else:
        epoch = READERS[reader](scratch)
        seconds = timed(lambda: sum(epoch(0)))
    return {"cold": sum(path.stat().st_size for path in tars) / seconds}


def measure_gpu(scratch: Path) -> dict[str, float]:
    """Bytes per second to a GPU: from one large buffer, from filled batches, and read as well; and the share
    of a step, of 10 ms of matrix products, that waits for data."""
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    stream = shards.FeatureStream(str(scratch / "shards"), global_batch_size=BATCH)
    size = sum(batch.num_bytes for batch in stream.epoch(0, device="cuda"))
    filled = list(stream.epoch(1))
    for batch in filled:
        batch.to("cuda", non_blocking=True)

    def copy_filled() -> int:
        return sum(len(batch.to("cuda", non_blocking=True)) for batch in filled)

    def read_and_copy() -> int:
        return sum(len(batch) for batch in stream.epoch(2, device="cuda"))

    def on_gpu(work: Callable[[], int]) -> float:
        torch.cuda.synchronize()
        return timed(lambda: (work(), torch.cuda.synchronize())[0])

    figures = {
        "copy": host.nbytes
        / on_gpu(lambda: device.copy_(host, non_blocking=True) is not None and UTTERANCES),
        "copy_filled": size / on_gpu(copy_filled),
        "read_and_copy": size / on_gpu(read_and_copy),
    }
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    products = max(1, round(0.010 / (on_gpu(lambda: [a @ a for _ in range(50)] and UTTERANCES) / 50)))
    waited, begin, batches = 0.0, time.perf_counter(), stream.epoch(3, device="cuda")
    while True:
        asked = time.perf_counter()
        if (batch := next(batches, None)) is None:
            break
        waited += time.perf_counter() - asked
        for _ in range(products):
            a @ a
        batch.label.sum().item()
    return figures | {"wait": waited / (time.perf_counter() - begin)}


def timed(work: Callable[[], int]) -> float:
    begin = time.perf_counter()
    done = work()
    seconds = time.perf_counter() - begin
    if done != UTTERANCES:
        raise RuntimeError(f"{done} of {UTTERANCES} utterances read")
    return seconds


def resident(kind: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) << 10


# --- All of them, and the table --------------------------------------------------------------------


def apart(kind: str, reader: str, scratch: Path) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--scratch", str(scratch), "--only", kind, reader]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def run(scratch: Path, rounds: int) -> str:
    """Write the corpus where it is not yet, measure, and tell in Markdown."""
    absent = {name for name, package in PEERS.items() if not installed(package)}
    for name, write in WRITERS.items():
        if name not in absent and not (scratch / name).exists():
            shutil.rmtree(scratch / f"{name}.part", ignore_errors=True)
            write(scratch / f"{name}.part")
            (scratch / f"{name}.part").rename(scratch / name)
    warm: dict[str, list[dict[str, float]]] = {n: [] for n in READERS if n not in absent}
    cold: dict[str, list[dict[str, float]]] = {name: [] for name in ("cat", "this stream")}
    load = os.getloadavg()[0]
    for number in range(rounds):
        for name in rotated(list(warm), number):
            warm[name].append(apart("warm", name, scratch))
            print(f"round {number + 1}: {name}: {warm[name][-1]['second']:,.0f}", file=sys.stderr)
    for number in range(rounds):
        for name in rotated(list(cold), number):
            cold[name].append(apart("cold", name, scratch))
    gpu = apart("gpu", "", scratch) if torch.cuda.is_available() else None
    return "\n".join([*heading(load), *warm_table(warm, absent), *cold_table(cold), *gpu_table(gpu)]) + "\n"


def rotated(names: list[str], by: int) -> list[str]:
    return names[by % len(names) :] + names[: by % len(names)]


def median(rows: list[dict[str, float]], column: str) -> float:
    return statistics.median(row[column] for row in rows)


def heading(load: float) -> list[str]:
    packages = ["torch", "numpy", *PEERS.values()]
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in packages if installed(p))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return [
        f"# Reading {UTTERANCES:,} utterances ({lengths().sum() * 2 * (AUDIO + VIDEO // 2) / 1e6:,.0f} MB) "
        f"in batches of {BATCH}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}; {cpu()}, {os.cpu_count()} cores, {gpu}; load {load:.1f} at the "
        f"start; {platform.system()} {platform.release()}; Python {platform.python_version()}, {versions}.",
        "",
    ]


def warm_table(warm: dict[str, list[dict[str, float]]], absent: set[str]) -> list[str]:
    ours, bare = median(warm["this stream"], "second"), median(warm["bare preadv loop"], "second")
    rows = [
        "| page-cached, one process | utterances/s | lowest - highest | first epoch | this stream / it "
        "| of the bare loop | memory, MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, runs in warm.items():
        rate = median(runs, "second")
        low, high = (pick(r["second"] for r in runs) for pick in (min, max))
        rows.append(
            f"| {name} | {rate:,.0f} | {low:,.0f} - {high:,.0f} | {median(runs, 'first'):,.0f} "
            f"| {ours / rate:.2f} | {rate / bare:.0%} | {median(runs, 'memory') / 1e6:,.0f} |"
        )
    missing = ["", f"Not installed, not measured: {', '.join(sorted(absent))}."] if absent else []
    rounds = len(warm["this stream"])
    return [
        *rows,
        *missing,
        "",
        f"Medians of {rounds} interleaved rounds; memory: by how much reading raised "
        "the process's peak, imports included.",
        "",
    ]


def cold_table(cold: dict[str, list[dict[str, float]]]) -> list[str]:
    cat, ours = (median(cold[name], "cold") for name in ("cat", "this stream"))
    return [
        "| files forgotten by the kernel | GB/s | of `cat` |",
        "|---|---:|---:|",
        f"| `cat` of the shards | {cat / 1e9:.2f} | 100% |",
        f"| this stream, first epoch | {ours / 1e9:.2f} | {ours / cat:.0%} |",
        "",
    ]


def gpu_table(gpu: dict[str, float] | None) -> list[str]:
    if gpu is None:
        return ["Copies to a GPU and the wait for data there: not measured, no GPU."]
    return [
        "| to the GPU | |",
        "|---|---:|",
        f"| one page-locked buffer of 1 GiB | {gpu['copy'] / 1e9:.1f} GB/s |",
        f"| filled batches | {gpu['copy_filled'] / 1e9:.1f} GB/s ({gpu['copy_filled'] / gpu['copy']:.0%}) |",
        f"| read and copied | {gpu['read_and_copy'] / 1e9:.1f} GB/s |",
        f"| waiting for data, of steps of 10 ms | {gpu['wait']:.1%} |",
    ]


def installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for the corpus; 5 GB")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for loader-<date>.md")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        # Else threads of torch's own pad the peers' batches, and wait for each other where cores are shared.
        torch.set_num_threads(1)
        kind, reader = arguments.only
        measures = {"warm": measure, "cold": measure_cold, "gpu": lambda _, scratch: measure_gpu(scratch)}
        print(json.dumps(measures[kind](reader, arguments.scratch)))
        return
    table = run(arguments.scratch, arguments.rounds)
    print(table)
    if arguments.out:
        (arguments.out / f"loader-{datetime.now(UTC):%Y-%m-%d}.md").write_text(table)


if __name__ == "__main__":
    main()
