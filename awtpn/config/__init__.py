"""The configuration of a run, and how commands begin and end.

- `settings`: the sections run, data and train; `schema`: all sections together and the checks between them
- `command_line`: `launch/train.py`'s words -> a configuration; `yaml_file`: the file of `--config`; `errors`:
  one-line errors with a suggestion
- `option_types`: values of argparse options that several commands take
- `entry_point`: a user's error ends in one line, and nothing printed shows a credential; `private_words`:
  credentials on their way to child processes
"""
