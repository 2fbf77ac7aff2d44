"""The order of utterances: a pure function of the shards' row counts, seed, epoch and global batch size.

What it guarantees, for every store and every cluster (B: global batch size, W: number of ranks):

- Same batches: step s of epoch e holds the same utterances at the same places of the global batch, for every
  W that divides B and for any gradient accumulation. Rank r reads the places [r B / W, (r + 1) B / W).
- Resume: a run that stopped at step s resumes there on any other W. The order at any step is computed
  directly; nothing before it is replayed, and there is no state to save.
- Exactly once: an epoch holds each selected row once. All ranks run the same number of steps; only the last
  step may have empty places.
- Locality: where W divides the number of canonical streams S, a rank reads only the shards of its own
  streams, the same ones in every epoch.

How: the shards, in an order drawn once per run, are concatenated, and their rows are cut into S ranges whose
sizes differ by at most one. Range i is canonical stream i (config key `data.streams`; not a `FeatureStream`).
It fills the places [i B / S, (i + 1) B / S) of every global batch. Another S gives another order, so a run
keeps its S.

Example, not shuffled: shards a, b, c of 3, 3 and 2 rows, B = 4, S = 2. Stream 0 is a0 a1 a2 b0, stream 1 is
b1 b2 c0 c1.

    place     0   1   2   3
    step 0    a0  a1  b1  b2      1 rank reads places 0-3
    step 1    a2  b0  c0  c1      2 ranks: rank 0 reads places 0-1 (shards a, b), rank 1 places 2-3 (b, c)

Shuffling: each epoch draws, within each stream, the order of its pieces (a piece is the part of a shard that
the stream owns), the order of blocks of rows within a piece, and the order of rows within windows of
consecutive blocks. So a shard is needed during one short stretch of an epoch. Every draw has its own random
generator, seeded by what is drawn (for a window: seed, epoch, stream, window). So any window is found without
the windows before it, by ordering the stream's pieces and blocks and that window. Where the lengths of rows
are known, the rows of a window are then ordered so that steps are of equal work (see `balance`); this reads
the lengths of that window's rows only.

`FeatureStream` calls this for training; `simulate` calls it to compute what a cluster would read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from shards.planning.balance import GROUP_STEPS, balance_steps

# Rows within which a row is shuffled, over all streams together.
WINDOW = 16_384
# Windows of a stream are at least this long: shorter ones shuffle too little, however many streams share
# WINDOW.
SMALLEST_WINDOW = 1_024
# Blocks per window. More blocks mix rows of a large shard that lie further apart.
BLOCKS_PER_WINDOW = 4

# What is drawn. It is part of the seed of each draw, so that no two draws share their random numbers.
_SHARD_ORDER, _PIECES, _BLOCKS, _ROWS, _ROTATION = range(5)

# Maps shards to the work of their rows (the time steps of an utterance), an array [rows] for each shard.
Work = Callable[[list[int]], list[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Plan:
    """The order of a split or selection. Made by `make_plan`; the functions here only read it.

    Attributes:
        shard_order: [shards] the shards in the order in which they are concatenated.
        starts: [shards + 1] first row of each shard in the concatenation, then the number of all rows.
        window_rows: rows per window of a stream.
        work: gives the work of rows; None: steps are not balanced.
        memo: the latest blocks and window of each stream, kept because consecutive steps need the same ones.
            It caches results of pure functions, and is not state.
    """

    global_batch_size: int
    streams: int
    seed: int
    shuffle: bool
    shard_order: np.ndarray
    starts: np.ndarray
    window_rows: int
    work: Work | None = None
    memo: dict[tuple[int, int], tuple[tuple[int, int], tuple[np.ndarray, ...]]] = field(
        default_factory=dict, repr=False
    )

    @property
    def rows(self) -> int:
        """Number of all rows."""
        return int(self.starts[-1])

    @property
    def batch_share(self) -> int:
        """Number of places of the global batch that each stream fills."""
        return self.global_batch_size // self.streams

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps, the same on every rank: as many as the longest stream needs."""
        longest = -(-self.rows // self.streams)
        return -(-longest // self.batch_share)


def make_plan(
    counts: Sequence[int] | np.ndarray,
    global_batch_size: int,
    *,
    streams: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    window: int = WINDOW,
    work: Work | None = None,
) -> Plan:
    """Plan the order of rows.

    Args:
        counts: rows per shard, in the manifest's order.
        global_batch_size: utterances per step over all ranks.
        streams: S; default: without shuffling 1 (the manifest's order), else the largest divisor of the
            global batch of at most a quarter of the shards.
        seed: of all draws.
        shuffle: False keeps the manifest's order within each stream.
        window: rows within which a row is shuffled, over all streams together.
        work: gives the work of the rows of shards, to balance steps; has no effect without shuffling.

    Raises:
        ValueError: no rows, a negative seed, or the streams do not divide the global batch.
    """
    counts = np.asarray(counts, np.int64)
    if counts.sum() == 0:
        raise ValueError("no utterances to plan: the split or the selection is empty")
    if global_batch_size < 1 or window < 1 or seed < 0:
        raise ValueError(
            f"global batch {global_batch_size}, window {window} must be positive, seed {seed} at least 0"
        )
    if streams is None:
        streams = default_streams(int(np.count_nonzero(counts)), global_batch_size) if shuffle else 1
    if streams < 1 or global_batch_size % streams:
        raise ValueError(f"{streams} streams do not divide the global batch of {global_batch_size}")
    shard_order = _permutation(len(counts), seed, _SHARD_ORDER) if shuffle else np.arange(len(counts))
    share = global_batch_size // streams
    # A window holds whole steps, so that each step is balanced as one.
    window_steps = -(-max(window // streams, SMALLEST_WINDOW) // share)
    return Plan(
        global_batch_size=global_batch_size,
        streams=streams,
        seed=seed,
        shuffle=shuffle,
        shard_order=shard_order,
        starts=np.concatenate([[0], np.cumsum(counts[shard_order])]),
        window_rows=window_steps * share,
        work=work if shuffle else None,
    )


def default_streams(shards: int, global_batch_size: int) -> int:
    """The largest divisor of the global batch that leaves each stream about 4 shards or more."""
    most = max(1, min(shards // 4, global_batch_size))
    return next(s for s in range(most, 0, -1) if global_batch_size % s == 0)


def places_of_rank(
    global_batch_size: int, rank: int, world_size: int, uneven: bool = False
) -> tuple[int, int]:
    """First place and number of places of the global batch that a rank reads.

    Rank r of W reads the places from floor(r B / W) to floor((r + 1) B / W) - 1 of B.

    Args:
        uneven: some ranks may read one place more than others, or none.

    Raises:
        ValueError: the ranks do not divide the global batch though they should, or there is no such rank.
    """
    if world_size < 1 or (global_batch_size % world_size and not uneven):
        raise ValueError(
            f"{world_size} ranks do not divide the global batch of {global_batch_size}; change either"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} of {world_size} ranks: must be 0 to {world_size - 1}")
    first = rank * global_batch_size // world_size
    return first, (rank + 1) * global_batch_size // world_size - first


def rows_of_step(
    plan: Plan, epoch: int, step: int, first_place: int, num_places: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The utterances of a step in a range of places of the global batch.

    Args:
        plan: the plan.
        epoch, step: 0-based.
        first_place, num_places: the range; `places_of_rank` gives a rank's.

    Returns:
        place, shard, row, each [U] int64, by ascending place. Empty places of an epoch's last step are not
        among them.
    """
    share = plan.batch_share
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for stream in streams_of_places(plan, first_place, num_places):
        first_of_stream = stream * share
        low, high = max(first_place, first_of_stream), min(first_place + num_places, first_of_stream + share)
        # Rows [begin, stop) of the stream fill these places, fewer in an epoch's last step.
        begin = step * share + low - first_of_stream
        stop = min(step * share + high - first_of_stream, _stream_rows(plan, stream))
        place_of_row_0 = low - begin
        while begin < stop:
            window = begin // plan.window_rows
            shard, row = _window(plan, epoch, stream, window)
            start = window * plan.window_rows
            end = min(stop, start + len(shard))
            inside = slice(begin - start, end - start)
            place = np.arange(place_of_row_0 + begin, place_of_row_0 + end)
            found.append((place, shard[inside], row[inside]))
            begin = end
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    place, shard, row = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return place, shard, row


def shards_ahead(plan: Plan, epoch: int, step: int, first_place: int, num_places: int) -> list[int]:
    """Shards that a range of places needs at a step and soon after, the most urgent first.

    They are the shards of each stream's current window, then those of its next window.
    """
    wanted: dict[int, None] = {}  # a set that keeps the order
    for window in windows_ahead(plan, step):
        for stream in streams_of_places(plan, first_place, num_places):
            shard, _, start = _blocks(plan, epoch, stream)
            first, last = _overlapping(start, window * plan.window_rows, (window + 1) * plan.window_rows)
            wanted.update(dict.fromkeys(shard[first:last].tolist()))
    return list(wanted)


def windows_ahead(plan: Plan, step: int) -> range:
    """The windows that a step reads, and the next one. `shards_ahead` changes only when these do."""
    begin, end = step * plan.batch_share, (step + 1) * plan.batch_share
    return range(begin // plan.window_rows, (end - 1) // plan.window_rows + 2)


def shards_of_places(plan: Plan, first_place: int, num_places: int) -> np.ndarray:
    """Shards that a range of places needs during an epoch, each once, ascending; the same in every epoch."""
    streams = streams_of_places(plan, first_place, num_places)
    low, high = _stream_range(plan, streams[0])[0], _stream_range(plan, streams[-1])[1]
    first, last = _overlapping(plan.starts, low, high)
    inside = np.arange(first, last)
    return np.sort(plan.shard_order[inside[np.diff(plan.starts)[inside] > 0]])


def streams_of_places(plan: Plan, first_place: int, num_places: int) -> range:
    """The canonical streams that fill a range of places of the global batch, in part or completely."""
    share = plan.batch_share
    return range(first_place // share, -(-(first_place + num_places) // share))


def pieces_of_stream(plan: Plan, stream: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pieces of a stream, not shuffled.

    Returns:
        shard, its first row that belongs to the stream, and the number of such rows, [pieces] each. A shard
        without rows may be among them.
    """
    low, high = _stream_range(plan, stream)
    first = int(np.searchsorted(plan.starts, low, "right")) - 1
    last = int(np.searchsorted(plan.starts, high, "left"))
    begin = np.maximum(plan.starts[first:last], low)
    rows = np.minimum(plan.starts[first + 1 : last + 1], high) - begin
    return plan.shard_order[first:last], begin - plan.starts[first:last], rows


def _stream_rows(plan: Plan, stream: int) -> int:
    first, last = _stream_range(plan, stream)
    return last - first


def _stream_range(plan: Plan, stream: int) -> tuple[int, int]:
    """First row and end of a stream in the concatenation. The sizes of streams differ by at most one."""
    return stream * plan.rows // plan.streams, (stream + 1) * plan.rows // plan.streams


def _window(plan: Plan, epoch: int, stream: int, window: int) -> tuple[np.ndarray, ...]:
    """Shard and row at each position of a window of a stream."""
    if (known := plan.memo.get((_ROWS, stream))) and known[0] == (epoch, window):
        return known[1]
    shard, row, start = _blocks(plan, epoch, stream)
    low = window * plan.window_rows
    high = min(low + plan.window_rows, int(start[-1]))
    first, last = _overlapping(start, low, high)
    position = np.arange(low, high)
    block = np.repeat(np.arange(first, last), np.diff(np.clip(start[first : last + 1], low, high)))
    shard, row = shard[block], row[block] + position - start[block]
    if plan.shuffle:
        order = _permutation(len(position), plan.seed, _ROWS, epoch, stream, window)
        shard, row = shard[order], row[order]
    if plan.work is not None:
        # Neighboring streams get different rotations, so that their remaining differences balance each other.
        rotation = int(_permutation(GROUP_STEPS, plan.seed, _ROTATION, epoch, window)[0]) + stream
        order = balance_steps(_work_of(plan.work, shard, row), plan.batch_share, rotation)
        shard, row = shard[order], row[order]
    plan.memo[_ROWS, stream] = ((epoch, window), (shard, row))
    return shard, row


def _work_of(work: Work, shard: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Work of each row, [U]; `work` is called once, with each shard once."""
    shards, which = np.unique(shard, return_inverse=True)
    rows = work(shards.tolist())
    first = np.cumsum([0, *map(len, rows)])
    found: np.ndarray = np.concatenate(rows)[first[which] + row]
    return found


def _overlapping(start: np.ndarray, low: int, high: int) -> tuple[int, int]:
    """Range of the blocks that share a position with [low, high), given where each block starts."""
    high = min(high, int(start[-1]))
    if low >= high:
        return 0, 0
    return int(np.searchsorted(start, low, "right")) - 1, int(np.searchsorted(start, high, "left"))


def _blocks(plan: Plan, epoch: int, stream: int) -> tuple[np.ndarray, ...]:
    """The blocks of a stream in the epoch's order.

    Returns:
        shard [blocks] and first row [blocks] of each block, and start [blocks + 1]: the position in the
        stream at which each block starts, then the stream's length.
    """
    if (known := plan.memo.get((_BLOCKS, stream))) and known[0] == (epoch, 0):
        return known[1]
    shard, begin, length = pieces_of_stream(plan, stream)
    if plan.shuffle:
        order = _permutation(len(shard), plan.seed, _PIECES, epoch, stream)
        shard, begin, length = shard[order], begin[order], length[order]

    block_rows = max(1, plan.window_rows // BLOCKS_PER_WINDOW)
    blocks = -(-length // block_rows)
    piece = np.repeat(np.arange(len(shard)), blocks)
    nth = np.arange(len(piece)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    if plan.shuffle:
        # Blocks stay within their piece, so that a shard is needed during one stretch of the epoch only.
        drawn = _permutation(len(piece), plan.seed, _BLOCKS, epoch, stream)
        order = np.lexsort((drawn, piece))
        piece, nth = piece[order], nth[order]
    rows = np.minimum(length[piece] - nth * block_rows, block_rows)
    start = np.concatenate([[0], np.cumsum(rows)])
    found = (shard[piece], begin[piece] + nth * block_rows, start)
    plan.memo[_BLOCKS, stream] = ((epoch, 0), found)
    return found


def _permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of n, the same for the same key on every machine.

    It sorts raw bits: NumPy keeps those stable over its releases, but not the results of its `permutation`.
    """
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(n)
    return np.argsort(bits, kind="stable")
