"""Which rank reads what, and when: pure functions of explicit rank and world size.

- `plan`: the order of utterances; `balance`: equal work for ranks; `cache_demand`: shards needed at a time
"""
