"""What `awtpn shards` does with datasets.

- `info`: what is in a dataset, with `target_summary`, and its first utterances, with `utterance_arrays`
- `verify`: checks every hash and statistic, with `statistics_checks` and `recording_checks`
- `simulate`: what the nodes of a cluster would read; `sizes`: how much sound there is
- tars of other programs: `index_tars`, `scan_tar`, `member_names` (which utterance a member belongs to),
  `index_in_place`
"""
