"""From samples to a dataset.

- `pack`: samples to shards and a manifest; `validation`: checks of one sample; `shard_writer`: one shard
- `quantization`: int8 features, their scales and errors; `scales`: the pass over all samples that finds them
- `output_folder`: files of a complete dataset, or none; `marker`: one writer at a time; `replacement`: of a
  dataset that is there
"""
