"""The loader benchmark's corpus in each format, and its readers: this stream, other libraries, a bare loop.

3,000 utterances, 1.07 GB; audio [M, 1024] and video [M / 2, 512] float16, M log-normal with median 120, from
20 to 600. A reader opens the corpus and returns a function: epoch -> the number of utterances of each batch.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import types
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
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
# MosaicML Streaming and litdata require torchvision, and of PyPI's builds none fits a CPU torch: transformers
# would import it and fail. The first also wants older releases of transformers and numpy. They are not in an
# extra: they are installed beside the environment, without what is not imported here.
PEER_PACKAGES = (
    *("litdata", "mosaicml-streaming", "boto3", "botocore", "brotli", "catalogue", "certifi", "cramjam"),
    *("jmespath", "lightning-utilities", "python-snappy", "requests", "s3transfer", "urllib3", "xxhash"),
    "zstd",
)
PEERS_FOLDER = "bench-peers"


def how_to_install(absent: Collection[str]) -> str:
    """What to say of libraries that are not installed, in Markdown."""
    command = f"pip install --no-deps --target {PEERS_FOLDER} {' '.join(PEER_PACKAGES)}"
    return (
        f"Not installed, not measured: {', '.join(sorted(absent))}. To measure them, too: `{command}`, and "
        f"the same command again with PYTHONPATH={PEERS_FOLDER}."
    )


# --- The corpus, in each format -------------------------------------------------------------------


@functools.cache
def lengths() -> np.ndarray:
    """Audio steps per utterance, [UTTERANCES]; a smaller corpus has the first of them."""
    drawn = np.random.default_rng(1).lognormal(np.log(120), 0.57, UTTERANCES)
    return np.clip(drawn, 20, 600).astype(int)


def utterance(i: int) -> dict[str, Any]:
    """Utterance i: slices of the same noise, so that it takes no time to generate."""
    m, values = int(lengths()[i]), noise()
    first = i * 997 % (values.size - 600 * AUDIO)
    audio = values[first : first + m * AUDIO].reshape(m, AUDIO)
    video = values[first : first + m // 2 * VIDEO].reshape(m // 2, VIDEO)
    return {"audio": audio, "video": video, "label": i % 4, "key": f"u{i:06d}"}


@functools.cache
def noise() -> np.ndarray:
    return np.random.default_rng(1).standard_normal(4 << 20, np.float32).astype(np.float16)


def write_shards(folder: Path, count: int) -> None:
    samples = (
        shards.Sample(u["key"], "train", str(u["label"]), {"audio": u["audio"], "video": u["video"]})
        for u in map(utterance, range(count))
    )
    shards.pack(samples, str(folder), classes=list("0123"), shard_bytes=SHARD_BYTES, progress=False)


def write_short(folder: Path, count: int) -> None:
    """Utterances of one time step of 64 features: reading them costs little but the work per utterance."""
    values = noise()[: count * 64].reshape(count, 1, 64)
    samples = (
        shards.Sample(f"u{i:06d}", "train", str(i % 4), {"audio": values[i], "video": values[-i]})
        for i in range(count)
    )
    shards.pack(samples, str(folder), classes=list("0123"), progress=False)


def write_mosaicml(folder: Path, count: int) -> None:
    streaming = import_streaming()
    columns = {"audio": "ndarray:float16", "video": "ndarray:float16", "label": "int", "key": "str"}
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for i in range(count):
            writer.write(utterance(i))


def write_litdata(folder: Path, count: int) -> None:
    import litdata

    litdata.optimize(
        utterance, list(range(count)), str(folder), chunk_bytes=SHARD_BYTES, num_workers=1, verbose=False
    )


def import_streaming() -> Any:
    """Import mosaicml-streaming, with stubs for torchvision (it imports that for images) if it is missing."""
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


# --- Readers --------------------------------------------------------------------------------------

Epoch = Callable[[int], Iterator[int]]


def padded(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, ...]:
    """Collate a batch as users of the other libraries do: padded features, lengths, labels."""
    audio = [torch.as_tensor(s["audio"]) for s in samples]
    video = [torch.as_tensor(s["video"]) for s in samples]
    return (
        pad_sequence(audio, batch_first=True),
        pad_sequence(video, batch_first=True),
        torch.tensor([len(a) for a in audio]),
        torch.tensor([len(v) for v in video]),
        torch.tensor([int(s["label"]) for s in samples]),
    )


def read_stream(
    scratch: Path, prefetch: int = 4, threads: int | None = None, corpus: str = "shards"
) -> Epoch:
    stream = shards.FeatureStream(
        str(scratch / corpus), global_batch_size=BATCH, prefetch=prefetch, threads=threads
    )
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

    # By default it also decodes neighboring utterances, which makes shuffled reading several times slower.
    dataset = litdata.StreamingDataset(str(scratch / "litdata"), shuffle=True, batch_decode=1)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, collate_fn=padded)
    return lambda epoch: (len(batch[0]) for batch in loader)


def read_bare(scratch: Path, threads: int) -> Epoch:
    """One `preadv` per array, in each thread alternately into two buffers; builds no batches.

    The threads take batches in turn. They need nothing of each other, and have nothing to put in order.
    """
    files, arrays = [], []
    for path in sorted((scratch / "shards").glob("*.tar")):
        index = np.load(path.with_suffix(".index.npz"))
        files.append(os.open(path, os.O_RDONLY))
        a, v = index["steps.audio"] * 2 * AUDIO, index["steps.video"] * 2 * VIDEO
        columns = index["offset.audio"], a, index["offset.video"], v
        arrays += [(files[-1], *row) for row in np.stack(columns, axis=1).tolist()]
    size = BATCH * 600 * 2 * (AUDIO + VIDEO)
    buffers = [[memoryview(bytearray(size)) for _ in range(2)] for _ in range(threads)]

    def read(thread: int, order: list[int]) -> list[int]:
        counts = []
        for number, first in enumerate(range(thread * BATCH, len(order), threads * BATCH)):
            buffer, done = buffers[thread][number % 2], 0
            for i in order[first : first + BATCH]:
                fd, *ranges = arrays[i]
                for offset, size in zip(ranges[::2], ranges[1::2], strict=True):
                    os.preadv(fd, [buffer[done : done + size]], offset)
                    done += size
            counts.append(len(order[first : first + BATCH]))
        return counts

    def epoch(number: int) -> Iterator[int]:
        order = np.random.default_rng(number).permutation(len(arrays)).tolist()
        with ThreadPoolExecutor(max(1, threads - 1)) as pool:
            others = [pool.submit(read, thread, order) for thread in range(1, threads)]
            yield from read(0, order)
            for other in others:
                yield from other.result()

    return epoch


READERS: dict[str, Callable[[Path], Epoch]] = {
    "bare preadv loop": lambda scratch: read_bare(scratch, threads=1),
    "bare preadv loop, 2 threads": lambda scratch: read_bare(scratch, threads=2),
    "this stream": read_stream,
    "this stream, 1 thread": lambda scratch: read_stream(scratch, threads=1),
    "this stream, 2 threads": lambda scratch: read_stream(scratch, threads=2),
    "this stream, prefetch=0": lambda scratch: read_stream(scratch, prefetch=0),
    "litdata": read_litdata,
    "mosaicml": read_mosaicml,
    "webdataset": read_webdataset,
}
WRITERS = {"shards": write_shards, "short": write_short, "mosaicml": write_mosaicml, "litdata": write_litdata}


def write_corpora(scratch: Path, count: int, formats: list[str]) -> None:
    """Write the corpus in each format in which it does not exist yet."""
    for name in formats:
        if not (scratch / name).exists():
            shutil.rmtree(scratch / f"{name}.part", ignore_errors=True)
            WRITERS[name](scratch / f"{name}.part", count)
            (scratch / f"{name}.part").rename(scratch / name)
