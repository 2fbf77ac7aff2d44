"""The command line of a training run: YAML file and dotted overrides -> `Config`.

    awtpn train --config configs/ravdess.yaml --optim.lr 3e-4 --run.seed 1

Every key has a type and a line of help (`--help`, `--print_config`). An unknown key, a wrong type or
settings that contradict each other are refused by name before anything starts.
"""

from __future__ import annotations

import contextlib
import json
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import yaml
from jsonargparse import SUPPRESS, DefaultHelpFormatter, set_parsing_settings

from awtpn.config.encoders import join_encoders
from awtpn.config.errors import OneLineParser, keys_of
from awtpn.config.modalities import full_map, join_modalities
from awtpn.config.program import TRAIN, Program
from awtpn.config.project_files import DEMO_CONFIG, find_file, packaged_files
from awtpn.config.schema import RUN_ADDRESSES, Config, Launch
from awtpn.config.yaml_file import CheckedFile, encoders_of, modalities_of
from awtpn.model.settings import ModelConfig
from shards.safe_io.bounded_yaml import TOO_MANY, TooManyValuesError, parse_yaml
from shards.storage.credentials import redact_url, remember_command
from shards.storage.local_path import is_remote, local_path

# A word of the command line that names a key within a mapping.
WITHIN_MAPPING = re.compile(
    r"--(?:data\.(?:select\.)?|run\.)(storage_options|train|val|test)\.([^=]+)(?:=(.*))?", re.DOTALL
)
HELP = """Train AWTPN. Without a configuration it makes a demo corpus and trains on it.

If a key is given twice, the last value counts, so keys after --config override the file. A run resumes from
the latest checkpoint in its folder.
"""
EXAMPLES = """examples:
  {program:<37} the demo, in half a minute
  {program} --config demo-values      the same with values; demo-labels: with several labels at once
  {program} --config configs/meld.yaml --optim.lr 3e-4
                                        a file, and one key changed
  torchrun --nproc-per-node 8 launch/train.py --config configs/meld.yaml
  accelerate launch --config_file configs/accelerate/zero2.yaml launch/train.py --config configs/meld.yaml

Launchers that start modules take `-m awtpn.cli train` in place of launch/train.py.
"""


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Types and defaults as jsonargparse shows them; description and examples keep their line breaks."""


@cache  # it reads the docstrings of all settings, and some commands read hundreds of command lines
def make_parser(program: Program = TRAIN) -> OneLineParser:
    """The parser of `awtpn train`: --config FILE, --deepspeed FILE and every dotted key."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = OneLineParser(
        prog=program.name,
        usage=f"{program.name} [--config FILE] [--deepspeed FILE] [--SECTION.KEY VALUE ...]",
        description=HELP,
        epilog=EXAMPLES.format(program=" ".join(program.typed)),
        formatter_class=HelpFormatter,
        default_config_files=[],
        allow_abbrev=False,  # --train.epoch must not pass for --train.epochs
    )
    parser.keys, parser.places = {"deepspeed": str | None} | keys_of(Config), {}
    named = {option: ", ".join(packaged_files(option)) for option in ("--config", "--deepspeed")}
    parser.add_argument(
        "--config",
        action=CheckedFile,
        metavar="FILE",
        help=f"YAML file with the keys below, or a name: {named['--config']}",
    )
    parser.add_argument(
        "--deepspeed",
        type=str | None,
        metavar="FILE",
        help=f"DeepSpeed config (JSON), or a name: {named['--deepspeed']}",
    )
    # The `deepspeed` launcher passes it, and no other does, so it tells which launcher started the run.
    parser.add_argument("--local_rank", type=int | None, help=SUPPRESS)
    parser.add_class_arguments(Config, nested_key=None)
    # As plain data, which --print_config can write.
    parser.set_defaults({"model.modalities": full_map({name: {} for name in ModelConfig().modalities})})
    return parser


def parse_command_line(
    argv: Sequence[str], program: Program = TRAIN, also: Sequence[str] = ()
) -> tuple[Config, Launch]:
    """Read the words of a command line. Exits with a message on an unknown key or a wrong type.

    Args:
        argv: without the program's name.
        program: the program, for its help; of another program than training: the one that passes these words
            on.
        also: options of that program, which may have been meant by an unknown word.

    Raises:
        ValueError: settings that contradict each other.
    """
    remember_command(argv)
    parser = make_parser(program)
    parser.also = ["config", *(option.removeprefix("--") for option in also)]
    parser.listed = f"{program.name} --help lists all keys"
    if also:
        parser.listed = f"{program.name} --help lists its options, and {TRAIN.name} --help all keys"
    arguments = list(argv)
    option = ""
    for word in arguments:
        option = word.partition("=")[0] if word.startswith("--") else option
        if has_too_many_values(word):
            parser.error(f"{option}: {TOO_MANY}")
    if not any(
        a == "--config" or a.startswith("--config=") or a.startswith("--data.train") for a in arguments
    ):
        arguments = ["--config", str(DEMO_CONFIG), *arguments]
    try:
        arguments = join_modalities(arguments, partial(modalities_of, keys=parser.keys))
        arguments = join_encoders(arguments, partial(encoders_of, keys=parser.keys))
    except ValueError as error:
        parser.error(str(error))
    try:
        parsed = parser.parse_args(arguments)
    except RecursionError:
        parser.error("a value is nested too deeply; write it plainly")
    values = parser.instantiate(parsed)
    config = Config(**{name: values[name] for name in Config.__dataclass_fields__})
    read_words_of_mappings(arguments, config)
    use_local_paths(config)
    config.remember_secrets()
    config.validate()
    file = str(find_file(values.deepspeed, "--deepspeed")) if values.deepspeed else None
    return config, Launch(file, values.local_rank is not None)


def has_too_many_values(word: str) -> bool:
    """Whether a word, or the value after its "=", is YAML with too many aliases."""
    for text in (word, word.partition("=")[2]) if "*" in word else ():
        try:
            parse_yaml(text)
        except TooManyValuesError:
            return True
        except (yaml.YAMLError, ValueError, RecursionError):
            continue  # reported when it is read
    return False


def use_local_paths(config: Config) -> None:
    """Replace paths as users write them (`~/run`, `file:///run`) by paths on this machine.

    Raises:
        ValueError: one is a URL where only paths are possible; names the key.
    """
    for name, key in (("run", "local_dir"), ("data", "cache_dir")):
        section = getattr(config, name)
        if value := getattr(section, key):
            setattr(section, key, str(local_path(value, f"{name}.{key}")))
    for key in RUN_ADDRESSES:
        if value := getattr(config.run, key):
            setattr(config.run, key, run_address(value, f"run.{key}"))


def run_address(given: str, key: str) -> str:
    """A run folder as a user writes it: a path on this machine, or a URL without "/" at its end.

    Raises:
        ValueError: a URL that no file system can open; names the key.
    """
    if not is_remote(given):
        return str(local_path(given, key))
    if "::" in given or "://" not in given:
        raise ValueError(f"{key} {redact_url(given)}: write it as s3://BUCKET/FOLDER, or a path")
    return given.rstrip("/")


def read_words_of_mappings(arguments: Sequence[str], config: Config) -> None:
    """Parse values such as 3 in `--data.select.test.fold 3`, which jsonargparse leaves as strings."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if found := WITHIN_MAPPING.fullmatch(word):
            section = config.run if word.startswith("--run.") else config.data
            options = found[1] == "storage_options"
            owner = section.storage_options if options else getattr(config.data.select, found[1])
            text = following if found[3] is None else found[3]
            if owner and owner.get(found[2]) == text:
                owner[found[2]] = scalar(text)


def scalar(text: str) -> Any:
    """A single value as JSON or YAML reads it; else the text itself."""
    for read in (json.loads, yaml.safe_load):
        # PyYAML raises a plain ValueError for an impossible date.
        with contextlib.suppress(ValueError, yaml.YAMLError, RecursionError):
            value = read(text)
            return value if isinstance(value, bool | int | float | str | None) else text
    return text
