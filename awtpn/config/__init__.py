"""The configuration of a run, and how commands begin and end.

- `settings`: the keys `run.*`, `data.*` and `train.*`; those of `model.*` are in `awtpn/model/settings.py`,
  those of `loss.*`, `prototypes.*` and `optim.*` in `awtpn/learning/settings.py`
- `schema`: all sections together and the checks between them
- `command_line`: `launch/train.py`'s words -> a configuration; `yaml_file`: the file of `--config`; `errors`:
  what is wrong with a key or value, and which key was probably meant
- `modalities`: the forms of `model.modalities`
- `option_types`: values of argparse options that several commands take
- `entry_point`: a user's error ends in one line, and nothing printed shows a credential; `private_words`:
  credentials on their way to child processes
"""
