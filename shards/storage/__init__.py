"""Read datasets from any store: local disk, http, S3, SFTP and all other file systems of fsspec.

- `store`: URL -> verified local file; `cache`: of limited size, shared by processes; `file_lock`: locks on
  open files; `daemon_threads`: that wait for a store; `retry`; `timeouts`; `sftp`
- `credentials`: removed from all output; `local_path`: a path that a user wrote
"""
