"""The configuration of a run, and how commands begin and end.

- `schema`: every key with its help, checked together; `yaml_file`: the file of `--config`; `errors`: one-line
  errors with a suggestion
- `entry_point`: a user's error ends in one line, and nothing printed shows a credential; `private_words`:
  credentials on their way to child processes
"""
