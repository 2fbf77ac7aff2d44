"""Any store: local disk, http, S3, SFTP and all that fsspec knows.

- `store`: URL -> verified local file; `cache`: within a budget, shared by processes; `file_lock`: locks
  on open files; `retry`; `timeouts`; `sftp`
- `credentials`: kept out of all that is shown; `local_path`: a path that a user wrote
"""
