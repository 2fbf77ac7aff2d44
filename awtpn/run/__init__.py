"""The folder of a run: checkpoints, records and results; and the data that a run reads.

- `folder`: all ranks use the same one; a resumed run continues in it; `lock`: one job at a time
- `checkpoint`: saved under any engine, resumed under any other; `checkpoint_writer`: writes it in the
  background; `position`: how far a run is; `init_from`: starts from another model's weights
- `record`: status and settings read back; `results`: results.json; `predictions`: one line per utterance;
  `compare`: two runs; `provenance`: code and machine
- `data`: streams of a run's splits; `demos`: names of the built-in corpora
- `remote/`: run folders at URLs: checkpoints and records are sent from a local folder, one job has the lease
- `atomic_write`: files that a reader sees whole or not at all
"""
