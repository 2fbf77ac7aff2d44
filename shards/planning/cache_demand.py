"""How many bytes of shards a node needs at a time; a cache limit below that is refused.

Under a smaller limit the node's ranks would wait for each other's shards to be closed, and a run would stop
with a full cache hours after its start. `FeatureStream` checks the limit when it opens; `simulate` reports
it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.format.schema import ShardEntry
from shards.planning.plan import Plan, places_of_rank
from shards.storage.store import Store


def working_set(plan: Plan, size: np.ndarray, first_place: int, num_places: int) -> int:
    """An upper bound, over all epochs and steps, of the bytes needed at a time (see `plan.shards_ahead`).

    It is tight for shards of about one size: a stretch of a stream overlaps as many pieces as fit into it,
    and one more at each end.

    Args:
        plan: the plan.
        size: [shards] bytes of each shard, with its index.
        first_place, num_places: the places of the global batch that the node reads.

    Returns:
        Bytes.
    """
    share, window = plan.batch_share, plan.window_rows
    # A step's windows and the next one. Where steps do not divide a window, a step may lie in two.
    stretch = (2 if window % share == 0 else 3) * window
    most = 0
    touched: set[int] = set()
    for stream in range(first_place // share, -(-(first_place + num_places) // share)):
        shard, rows = _pieces(plan, stream)
        inside = int(np.searchsorted(np.cumsum(np.sort(rows)), stretch - 2, "right"))
        most += int(np.sort(size[shard])[::-1][: inside + 2].sum())
        touched.update(shard.tolist())
    # Neighboring streams may share a shard, which the sum counts twice.
    return min(most, int(size[sorted(touched)].sum()))


def check_limit(
    store: Store,
    plan: Plan,
    shards: Sequence[ShardEntry],
    rank: int,
    world_size: int,
    local_world_size: int,
    at: str,
) -> None:
    """Refuse a cache limit below what the ranks of this node need at a time.

    Args:
        store: the dataset's folder.
        plan: the plan.
        shards: the shards of the plan.
        rank, world_size: of this process.
        local_world_size: number of ranks on this node; their ranks are consecutive.
        at: the split's URL, for error messages.

    Raises:
        ValueError: the limit is too small (names the bytes needed), or `local_world_size` does not divide
            `world_size`.
    """
    local = local_world_size
    if local < 1 or world_size % local:
        raise ValueError(f"local_world_size {local}: must divide the {world_size} ranks")
    if store.cache is None or store.cache.limit is None:
        return
    first, share = places_of_rank(plan.global_batch_size, rank // local * local, world_size)
    size = np.array([shard.bytes + shard.index_bytes for shard in shards], np.int64)
    needed = working_set(plan, size, first, share * local)
    if needed > store.cache.limit:
        raise ValueError(
            f"{at}: cache_limit is {store.cache.limit} bytes, while this node's {local} ranks need up to "
            f"{needed} at a time: set it to {needed} or more, pack smaller shards or use more nodes"
        )


def _pieces(plan: Plan, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """The shards that a stream has rows of, and the number of its rows in each."""
    low, high = stream * plan.rows // plan.streams, (stream + 1) * plan.rows // plan.streams
    first = int(np.searchsorted(plan.starts, low, "right")) - 1
    last = int(np.searchsorted(plan.starts, high, "left"))
    rows = np.minimum(plan.starts[first + 1 : last + 1], high) - np.maximum(plan.starts[first:last], low)
    return plan.shard_order[first:last][rows > 0], rows[rows > 0]
