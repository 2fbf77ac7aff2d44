"""The configuration of a run, and how commands begin and end.

- `settings`: the keys `run.*`, `data.*` and `train.*`; those of `model.*` are in `awtpn/model/settings.py`,
  those of `encoder.*` in `awtpn/model/encoders/settings.py`, of `loss.*`, `prototypes.*`, `optim.*` and
  `augment.*` in `awtpn/learning/settings.py`
- `schema`: all sections together and the checks between them; `former_defaults`: what a run of an earlier
  version keeps
- `command_line`: the words of `awtpn train` -> a configuration; `yaml_file`: the file of `--config`;
  `errors`: what is wrong with a key or value
- `modalities`: the forms of `model.modalities`; `encoders`: words on `encoder`
- `command_parser`: argparse's parser of the other commands, whose errors are as short; `suggestions`: which
  name was probably meant; `option_types`: values of options that several commands take
- `program`: the command as it was typed, to record it and to start it again
- `project_files`: where `configs` and `launch` are, in a wheel and in a checkout; files that users name
- `entry_point`: a user's error ends in one line, and nothing printed shows a credential; `rank_errors`: what
  several ranks say is printed once, and told to torchrun; `private_words`: credentials on their way to child
  processes
"""
