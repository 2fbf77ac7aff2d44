"""From samples to a dataset.

- `pack`: the whole of it; `validation`: what a sample must be; `shard_writer`: one shard
- `output_folder`: one writer at a time, complete or absent; `replacement`: of a dataset that is there
"""
