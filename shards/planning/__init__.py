"""Which rank reads which utterances at which step: pure functions of explicit rank and world size.

- `plan`: the order of utterances; `balance`: steps and ranks of equal work; `cache_demand`: bytes of shards
  that a node needs at a time, compared with the cache's limit
"""
