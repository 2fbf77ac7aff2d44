"""Benchmark of data loaders: utterances per second of this project's stream, other libraries and a bare loop.

    python -m awtpn.bench.loader --scratch /somewhere/with/5GB --out tests/benchmarks/results

The other libraries are not installed with this package, since they could break it (see `readers`); below the
table is how to install those that are missing.

The corpus: 3,000 utterances, 1.07 GB (`--utterances` takes fewer); audio [M, 1024] and video [M / 2, 512]
float16, M log-normal with median 120, from 20 to 600. Each reader makes batches of 32 in shuffled order, in
one process without workers and with one torch thread: padded batches with the other libraries, as their users
do, packed ones with this project's stream. Each measurement runs in its own process, which reads one epoch to
warm up and times the next. Rounds of all readers are interleaved, so that other load on the machine affects
all alike; the table shows medians. Cold figures are measured after dropping the files from the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

import shards
from awtpn.bench.machine import child_environment, describe, resident
from awtpn.bench.readers import (
    AUDIO,
    BATCH,
    PEERS,
    READERS,
    UTTERANCES,
    VIDEO,
    WRITERS,
    Epoch,
    how_to_install,
    lengths,
    read_stream,
    write_corpora,
)
from shards.safe_io.markdown import Markdown, table
from shards.safe_io.versions import installed_version

# --- One measurement, in its own process ----------------------------------------------------------


def measure(reader: str, scratch: Path, count: int) -> dict[str, float]:
    """Utterances per second of the first and second epoch, and the growth of peak memory in bytes."""
    before = resident("VmRSS")
    epoch = READERS[reader](scratch)
    first, second = (read_whole(epoch, number, count) for number in range(2))
    return {"first": count / first, "second": count / second, "memory": resident("VmHWM") - before}


def measure_short(threads: str, scratch: Path, count: int) -> dict[str, float]:
    """Utterances of one step per second, in the best of five epochs after the first."""
    epoch = read_stream(scratch, threads=int(threads), corpus="short")
    read_whole(epoch, 0, count)
    return {"second": count / min(read_whole(epoch, number, count) for number in range(1, 6))}


def measure_cold(reader: str, scratch: Path, count: int) -> dict[str, float]:
    """Bytes per second of `cat` or of a first epoch, after dropping the files from the page cache."""
    tars = sorted((scratch / "shards").glob("*.tar"))
    for path in tars:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    if reader == "cat":
        cat = ["cat", *map(str, tars)]
        took = seconds(lambda: subprocess.run(cat, stdout=subprocess.DEVNULL, check=True))
    else:
        took = read_whole(READERS[reader](scratch), 0, count)
    return {"cold": sum(path.stat().st_size for path in tars) / took}


def measure_gpu(scratch: Path) -> dict[str, float]:
    """Bytes per second to a GPU, and the share of time that steps of 10 ms wait for data.

    Returns:
        "copy": of one large buffer; "copy_filled": of batches in memory; "read_and_copy": of batches read
        from disk; "wait": the share.
    """
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    device = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    stream = shards.FeatureStream(str(scratch / "shards"), global_batch_size=BATCH)
    size = sum(batch.num_bytes for batch in stream.epoch(0, device="cuda"))
    filled = list(stream.epoch(1))

    def on_gpu(work: Callable[[], object]) -> float:
        def whole() -> None:
            work()
            torch.cuda.synchronize()

        torch.cuda.synchronize()
        return seconds(whole)

    def copy_filled() -> None:
        for batch in filled:
            batch.to("cuda", non_blocking=True)

    def read_and_copy() -> None:
        for batch in stream.epoch(2, device="cuda"):
            assert batch.label.is_cuda

    copy_filled()  # warm-up
    figures = {
        "copy": host.nbytes / on_gpu(lambda: device.copy_(host, non_blocking=True)),
        "copy_filled": size / on_gpu(copy_filled),
        "read_and_copy": size / on_gpu(read_and_copy),
    }
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    products = max(1, round(0.010 / (on_gpu(lambda: [a @ a for _ in range(50)]) / 50)))
    waited, begin, batches = 0.0, time.perf_counter(), stream.epoch(3, device="cuda")
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        waited += time.perf_counter() - asked
        for _ in range(products):
            a @ a
        batch.label.sum().item()
    return figures | {"wait": waited / (time.perf_counter() - begin)}


def read_whole(epoch: Epoch, number: int, count: int) -> float:
    """Seconds that an epoch of `count` utterances takes.

    Raises:
        RuntimeError: it had another number of utterances.
    """
    done: list[int] = []
    took = seconds(lambda: done.append(sum(epoch(number))))
    if done != [count]:
        raise RuntimeError(f"{done[0]} of {count} utterances read: empty the --scratch folder and run again")
    return took


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


# --- All measurements, and the table ---------------------------------------------------------------


def measure_in_process(kind: str, reader: str, scratch: Path, count: int) -> dict[str, float]:
    """Run one measurement ("warm", "short", "cold" or "gpu") in its own process."""
    command = [sys.executable, "-m", "awtpn.bench.loader", "--scratch", str(scratch)]
    command += ["--utterances", str(count), "--only", kind, reader]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=child_environment())
    figures: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def run(scratch: Path, rounds: int, count: int = UTTERANCES) -> str:
    """Write the corpus if it does not exist yet, measure, and return the tables in Markdown."""
    absent = {name for name, package in PEERS.items() if not installed_version(package)}
    write_corpora(scratch, count, [name for name in WRITERS if name not in absent])
    warm: dict[str, list[dict[str, float]]] = {n: [] for n in READERS if n not in absent}
    cold: dict[str, list[dict[str, float]]] = {name: [] for name in ("cat", "this stream")}
    for number in range(rounds):
        for name in rotate(list(warm), number):
            warm[name].append(measure_in_process("warm", name, scratch, count))
            print(f"round {number + 1}: {name}: {warm[name][-1]['second']:,.0f}", file=sys.stderr)
    short = {
        threads: [measure_in_process("short", str(threads), scratch, count) for _ in range(rounds)]
        for threads in (1, 2)
    }
    for number in range(rounds):
        for name in rotate(list(cold), number):
            cold[name].append(measure_in_process("cold", name, scratch, count))
    gpu = measure_in_process("gpu", "", scratch, count) if torch.cuda.is_available() else None
    title = (
        f"## Reading {count:,} utterances "
        f"({lengths()[:count].sum() * 2 * (AUDIO + VIDEO // 2) / 1e6:,.0f} MB) in batches of {BATCH}"
    )
    return (
        "\n".join(
            [
                title,
                "",
                *warm_table(warm, absent),
                *thread_table(warm, short),
                *cold_table(cold),
                *gpu_table(gpu),
            ]
        )
        + "\n"
    )


def rotate(names: list[str], by: int) -> list[str]:
    return names[by % len(names) :] + names[: by % len(names)]


def median(rows: list[dict[str, float]], column: str) -> float:
    return statistics.median(row[column] for row in rows)


def warm_table(warm: dict[str, list[dict[str, float]]], absent: set[str]) -> list[str]:
    ours, bare = median(warm["this stream"], "second"), median(warm["bare preadv loop"], "second")
    columns = ["page-cached, one process", "utterances/s", "lowest - highest", "first epoch"]
    columns += ["this stream / it", "of the bare loop", "memory, MB"]
    rows = []
    for name, runs in warm.items():
        rate = median(runs, "second")
        low, high = (pick(r["second"] for r in runs) for pick in (min, max))
        rows.append(
            [
                name,
                f"{rate:,.0f}",
                f"{low:,.0f} - {high:,.0f}",
                f"{median(runs, 'first'):,.0f}",
                f"{ours / rate:.2f}",
                f"{rate / bare:.0%}",
                f"{median(runs, 'memory') / 1e6:,.0f}",
            ]
        )
    missing = ["", Markdown(how_to_install(absent))] if absent else []
    return [
        table(columns, rows, "lr"),
        *missing,
        "",
        f"Medians of {len(warm['this stream'])} interleaved rounds; memory: growth of the process's peak "
        "during reading, imports included.",
        "",
    ]


def thread_table(
    warm: dict[str, list[dict[str, float]]], short: dict[int, list[dict[str, float]]]
) -> list[str]:
    """The stream beside a bare loop of as many threads, and its time per utterance of one time step."""
    rows = []
    for threads, bare in ((1, "bare preadv loop"), (2, "bare preadv loop, 2 threads")):
        ours = warm[f"this stream, {threads} thread{'s' * (threads > 1)}"]
        # Each round by itself: what slows the machine in a round slows both.
        shares = [a["second"] / b["second"] for a, b in zip(ours, warm[bare], strict=True)]
        rows.append(
            [
                str(threads),
                f"{median(warm[bare], 'second'):,.0f}",
                f"{median(ours, 'second'):,.0f}",
                f"{statistics.median(shares):.0%} ({min(shares):.0%} - {max(shares):.0%})",
                f"{1e6 / median(short[threads], 'second'):.1f}",
            ]
        )
    columns = ["reading threads", "bare loop, utterances/s", "this stream, utterances/s", "of the bare loop"]
    return [table([*columns, "microseconds per utterance of one step"], rows, "lr"), ""]


def cold_table(cold: dict[str, list[dict[str, float]]]) -> list[str]:
    cat, ours = (median(cold[name], "cold") for name in ("cat", "this stream"))
    rows = [
        [Markdown("`cat` of the shards"), f"{cat / 1e9:.2f}", "100%"],
        ["this stream, first epoch", f"{ours / 1e9:.2f}", f"{ours / cat:.0%}"],
    ]
    return [table(["page cache dropped", "GB/s", Markdown("of `cat`")], rows, "lr"), ""]


def gpu_table(gpu: dict[str, float] | None) -> list[str]:
    if gpu is None:
        return ["To a GPU: unmeasured, needs CUDA; run `awtpn bench --device cuda --parts loader`."]
    rows = [
        ["one page-locked buffer of 1 GiB", f"{gpu['copy'] / 1e9:.1f} GB/s"],
        ["filled batches", f"{gpu['copy_filled'] / 1e9:.1f} GB/s ({gpu['copy_filled'] / gpu['copy']:.0%})"],
        ["read, and copied on a separate CUDA stream", f"{gpu['read_and_copy'] / 1e9:.1f} GB/s"],
        ["waiting for data, of steps of 10 ms", f"{gpu['wait']:.1%}"],
    ]
    return [table(["to the GPU", ""], rows, "lr")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scratch", type=Path, help="folder for the corpora, 5 GB; kept for later runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--utterances", type=int, default=UTTERANCES)
    parser.add_argument("--out", type=Path, help="folder for loader-<date>.md")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        # More torch threads would pad the batches, and wait for each other when the cores are shared.
        torch.set_num_threads(1)
        kind, reader = options.only
        if kind == "gpu":
            found = measure_gpu(options.scratch)
        else:
            kinds = {"warm": measure, "cold": measure_cold, "short": measure_short}
            found = kinds[kind](reader, options.scratch, options.utterances)
        print(json.dumps(found))
        return
    about = describe("cpu", 1)
    with tempfile.TemporaryDirectory(prefix="awtpn-bench-") as temporary:
        text = run(options.scratch or Path(temporary), options.rounds, options.utterances)
    text = f"{about}\n\n{text}"
    print(text)
    if options.out:
        (options.out / f"loader-{datetime.now(UTC):%Y-%m-%d}.md").write_text(text)


if __name__ == "__main__":
    main()
