"""How many bytes of shards a node needs at a time; a cache limit below that is refused.

Under a smaller limit the node's ranks would wait for each other's shards to be closed, and a run would stop
with a full cache hours after its start. `FeatureStream` checks the limit when it opens; `simulate` reports
it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.format.schema import ShardEntry
from shards.planning.plan import Plan, pieces_of_stream, places_of_rank, streams_of_places
from shards.storage.store import Store


def working_set(plan: Plan, size: np.ndarray, first_place: int, num_places: int) -> int:
    """An upper bound, over all epochs and steps, of the bytes needed at a time (see `plan.shards_ahead`).

    It is close to the bytes needed if shards have similar sizes: the rows of a stream that are read at a time
    overlap as many pieces as fit into them, and one more at each end.

    Args:
        plan: the plan.
        size: [shards] bytes of each shard, with its index.
        first_place, num_places: the places of the global batch that the node reads.

    Returns:
        Bytes.
    """
    window = plan.window_rows
    # A step's windows and the next one. Where steps do not divide a window, a step may lie in two.
    stretch = (2 if window % plan.batch_share == 0 else 3) * window
    most = 0
    touched: set[int] = set()
    for stream in streams_of_places(plan, first_place, num_places):
        shard, _, rows = pieces_of_stream(plan, stream)
        shard, rows = shard[rows > 0], rows[rows > 0]
        # The most pieces that fit between the first and the last row of a stretch: counted with the shortest.
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
    if local_world_size < 1 or world_size % local_world_size:
        raise ValueError(f"local_world_size {local_world_size}: must divide the {world_size} ranks")
    if store.cache is None or store.cache.limit is None:
        return
    first_rank = rank // local_world_size * local_world_size
    first_place, _ = places_of_rank(plan.global_batch_size, first_rank, world_size, uneven=True)
    last, share = places_of_rank(
        plan.global_batch_size, first_rank + local_world_size - 1, world_size, uneven=True
    )
    size = np.array([shard.bytes + shard.index_bytes for shard in shards], np.int64)
    needed = working_set(plan, size, first_place, last + share - first_place)
    if needed > store.cache.limit:
        raise ValueError(
            f"{at}: cache_limit is {store.cache.limit} bytes, while this node's {local_world_size} ranks "
            f"need up to {needed} at a time: set it to {needed} or more, pack smaller shards or use more "
            "nodes"
        )
