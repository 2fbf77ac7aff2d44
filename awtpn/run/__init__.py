"""A run's folder: checkpoints, records and results; and the data that it reads.

- `folder`: agreed over ranks and brought to where the run starts; `lock`: one job at a time
- `checkpoint`: saved under any engine, resumed under any other; `position`: where a run stands
- `record`: status and settings read back; `results`: results.json; `predictions`: one line per utterance;
  `compare`: two runs; `provenance`: code and machine
- `data`: streams of a run's splits; `atomic_write`: files that a reader sees whole or not at all
"""
