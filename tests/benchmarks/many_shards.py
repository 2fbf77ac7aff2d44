"""Benchmark of large datasets: how long it takes to open them and to get the first batch, and the memory.

    python tests/benchmarks/many_shards.py --out tests/benchmarks/results

Two datasets of small utterances: 10,000 shards of 4, and 1,000 shards of 1,000 (a million). They are one
packed shard, copied under other names. Each case runs in its own process. "held out" opens one stream with
the utterances of four speakers of five and one with the others, as `data.select.train` and `data.select.val`
do; "first batch" is of 256 utterances from 256 canonical streams, all read by one process. The files are in
the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

DATASETS = {"10,000 shards of 4 utterances": (10_000, 4), "1,000 shards of 1,000 utterances": (1_000, 1_000)}
SPEAKERS, HELD_OUT = 20, 4
CASES = ("opened", "first batch", "held out", "held out, first batch")


def write(folder: Path, shards: int, utterances: int) -> None:
    """Pack one shard, and name copies of it in the manifest."""
    import shards as data_plane

    rng = np.random.default_rng(0)
    noise = rng.standard_normal((8, 16), np.float32).astype(np.float16)
    samples = (
        data_plane.Sample(
            f"u{i:07d}",
            "train",
            str(i % 4),
            {"audio": noise[: 1 + i % 8], "video": noise[: 1 + i % 3]},
            meta={"speaker": i * SPEAKERS // utterances if utterances >= SPEAKERS else i},
        )
        for i in range(utterances)
    )
    data_plane.pack(samples, str(folder), classes=list("0123"), progress=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    split = manifest["splits"]["train"]
    [entry] = split["shards"]
    entries = []
    for number in range(shards):
        name = f"train-{number:06d}.tar"
        named = {"name": name, "index": name.replace(".tar", ".index.npz")}
        entries.append(entry | {key: named[key] for key in named if key in entry})
        if number:
            shutil.copyfile(folder / "train-000000.tar", folder / name)
            shutil.copyfile(folder / "train-000000.index.npz", folder / named["index"])
    split["shards"] = entries
    split["utterances"] *= shards
    split["steps"] = {name: steps * shards for name, steps in split["steps"].items()}
    split["class_counts"] = [count * shards for count in split["class_counts"]]
    for moments in split["moments"].values():
        moments["count"] *= shards
    (folder / "manifest.json").write_text(json.dumps(manifest))


def measure(url: str, case: str) -> dict[str, float]:
    """Seconds of a case, and the growth of the process's peak memory in bytes."""
    from awtpn.bench.machine import resident
    from shards import FeatureStream

    speakers = np.unique(FeatureStream(url)._reader.index(0).columns["speaker"]).tolist()
    held = speakers[-max(1, len(speakers) * HELD_OUT // SPEAKERS) :]
    others = [speaker for speaker in speakers if speaker not in held]
    before, begin = resident("VmRSS"), time.perf_counter()
    selections = [{"speaker": others}, {"speaker": held}] if "held" in case else [None]
    streams = [FeatureStream(url, global_batch_size=256, streams=256, select=select) for select in selections]
    if "batch" in case:
        batch = next(streams[0].epoch(0))
        assert len(batch) == 256
    taken = time.perf_counter() - begin
    utterances = sum(stream.num_utterances for stream in streams)
    # The reading thread still fetches shards: nobody waits for it.
    print(json.dumps({"s": taken, "memory": resident("VmHWM") - before, "utterances": utterances}))
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for a Markdown file")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
    from awtpn.bench.machine import child_environment, describe
    from shards.safe_io.markdown import table

    about, rows = describe("cpu", 1), []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, size) in enumerate(DATASETS.items()):
            url = Path(folder) / str(number)
            write(url, *size)
            for case in CASES:
                command = [sys.executable, __file__, "--measure", str(url), case]
                ran = [
                    json.loads(
                        subprocess.run(
                            command, stdout=subprocess.PIPE, text=True, check=True, env=child_environment()
                        ).stdout
                    )
                    for _ in range(options.rounds)
                ]
                seconds = [each["s"] for each in ran]
                rows.append(
                    [
                        name,
                        case,
                        f"{ran[0]['utterances']:,}",
                        f"{statistics.median(seconds):.2f}",
                        f"{min(seconds):.2f} - {max(seconds):.2f}",
                        f"{statistics.median(each['memory'] for each in ran) / 1e6:,.0f}",
                    ]
                )
                print(rows[-1], file=sys.stderr)
    columns = ["dataset", "what", "utterances", "seconds", "lowest - highest", "memory, MB"]
    text = "\n".join(
        [
            "# Large datasets",
            "",
            "    python tests/benchmarks/many_shards.py",
            "",
            about,
            "",
            table(columns, rows, "lllrrr"),
            "",
            f"Medians of {options.rounds} runs, each in its own process; memory: growth of its peak.",
            "",
        ]
    )
    print(text)
    if options.out:
        (options.out / f"many-shards-{date.today()}.md").write_text(text)


if __name__ == "__main__":
    main()
