"""What `awtpn shards` does with datasets.

- `info`: what is in one; `verify`: every hash and statistic, with `statistics_checks`; `simulate`: what a
  cluster reads
- tars of others: `index_tars`, `scan_tar`, `member_names` (whose a member is), `index_in_place`
"""
