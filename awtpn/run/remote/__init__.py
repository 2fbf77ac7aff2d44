"""Run folders in object storage: a run works in a local folder, and its URL gets what changes there.

- `files`: put, get, list and delete, with retries and hashes
- `lease`: one job at a time at a URL; `heartbeat`: the thread that keeps the lease; `membership`: which job
  a node was in
- `records`: small files, sent when they change; `checkpoints`: sent whole, then `latest.json` is moved
- `sending`: the background thread of the main rank
- `pulling`: from the URL into a local folder; `session`: a training run from the lease to the last upload
- `commands`: what `awtpn` commands do with the URL of a run
"""
