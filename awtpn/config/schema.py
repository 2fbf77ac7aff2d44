"""The run's typed configuration: one dataclass per owner, assembled, read from YAML and dotted overrides.

    launch/train.py --config configs/ravdess.yaml --optim.lr 3e-4 --run.seed 1

Every key has a type and a line of help (`--help`, `--print_config`). An unknown key, a wrong type or
settings that contradict each other are refused by name before anything starts.
"""

from __future__ import annotations

import contextlib
import json
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import SUPPRESS, DefaultHelpFormatter, set_parsing_settings

from awtpn.config.errors import OneLineParser, keys_of
from awtpn.config.yaml_file import CheckedFile
from awtpn.learning.settings import LossConfig, OptimConfig, PrototypesConfig
from awtpn.model.settings import ModelConfig
from shards.safe_io.bounded_yaml import TOO_MANY, TooManyValuesError, parse_yaml
from shards.safe_io.json_text import find_not_finite
from shards.storage.credentials import redact_url, remember_command, remember_secrets
from shards.storage.local_path import local_path

ROLES = ("train", "val", "test")
POWER_OF_TEN = re.compile(r"[-+]?[\d_]*\.?[\d_]*[eE][-+]?\d+")
# A word of the command line that names a key within a mapping.
WITHIN_MAPPING = re.compile(
    r"--data\.(?:select\.)?(storage_options|train|val|test)\.([^=]+)(?:=(.*))?", re.DOTALL
)
# Of a rank: more than any machine has cores.
MOST_THREADS = 4096
LONGEST_TIMEOUT = 1e8  # three years
DEMO = "demo"  # data.train of the run that needs nothing
DEMO_CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"


@dataclass
class RunConfig:
    """One run: where it lives, and what it starts from."""

    dir: str | None = None
    """Run folder; default: runs/<data>-<time>, agreed over ranks."""
    seed: int = 0
    """Seeds the weights, the order of utterances, dropout and negatives."""
    resume: str = "auto"
    """auto: go on from run.dir's latest checkpoint where there is one; never; or a checkpoint folder."""
    init_from: str | None = None
    """Weights to start from: a run, checkpoint or export folder; other labels get a new classifier."""


@dataclass
class SelectConfig:
    """Utterances to use, by metadata column: {column: value or list of values}."""

    # Bare `dict`: of dict[str, Any] jsonargparse would read texts a second time, and make "04" the number 4.
    train: dict | None = None
    """E.g. {fold: [0, 1, 2]}."""
    val: dict | None = None
    """E.g. {fold: 3}."""
    test: dict | None = None
    """E.g. {session: Ses05}, or {actor: "04"} where a column of text looks like numbers."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for what no utterance's metadata can be."""
        for role in ROLES:
            for column, values in (getattr(self, role) or {}).items():
                if not isinstance(column, str):
                    raise ValueError(f"data.select.{role}: {column!r} names no column; write it in quotes")
                for value in values if isinstance(values, list) else [values]:
                    if not isinstance(value, str | bool | int | float):
                        raise ValueError(
                            f"data.select.{role}.{column} takes a value or a list of them, not {value!r:.60}"
                        )


@dataclass
class DataConfig:
    """Where the features are: packed datasets (see `awtpn pack`), local or any fsspec URL."""

    train: str = DEMO
    """Dataset folder or manifest; URL#split names a split. "demo" makes the demo corpus."""
    val: str | None = None
    """Default: split "val" ("valid", "dev") of data.train, or all of it where data.select.val says which."""
    test: str | None = None
    """Default: the split "test" of data.train, or all of it where data.select.test says which."""
    select: SelectConfig = field(default_factory=SelectConfig)
    """Utterances by metadata, for cross-validation without packing again."""
    standardize: bool = True
    """Standardise features with the selected training utterances' mean and deviation."""
    cache_dir: str | None = None
    """Where remote shards are kept; default: $AWTPN_CACHE_DIR, or ~/.cache/awtpn-shards."""
    cache_limit: str | None = None
    """Largest size of the cache, e.g. 200GB; default: no limit."""
    streams: int | None = None
    """Canonical streams the data is dealt to; default: chosen from global batch and shard count."""
    damaged_budget: int = 0
    """Training utterances that may be left out as damaged or missing; 0 stops at the first."""
    check_crc: bool = False
    """See flipped bits in local files, by the CRC-32 of each array: takes a core 0.5 ms per MB read."""
    storage_options: dict = field(default_factory=dict, repr=False)
    """Options for fsspec (endpoint, region, ...). Never written to the run folder."""


@dataclass
class TrainConfig:
    """How long, how big, how precise."""

    epochs: int = 30
    """Passes over the training utterances."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, wherever in an epoch."""
    global_batch_size: int = 32
    """Utterances per optimizer step over all ranks; the same for every layout."""
    micro_batch_size: int | None = None
    """Utterances per forward on one rank; default: global / ranks, no accumulation."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the projections and attention products; distances, softmaxes and losses stay float32."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; default: as launched (2 under `deepspeed` without a config file)."""
    log_every: int = 10
    """Steps between writes to metrics.jsonl and TensorBoard (each step has its own line)."""
    validate_every: int = 1
    """Epochs between validations; the last epoch always validates."""
    checkpoint_every: int | None = None
    """Steps between checkpoints besides the one after every epoch."""
    skip_budget: int = 10
    """Steps with a loss or gradient that is not finite to leave out before giving up."""
    timeout: float = 1800.0
    """Seconds without a finished step after which a rank counts as hung and the run is stopped."""
    keep_last: int = 2
    """Checkpoints to keep besides the best."""
    pictures: Literal["auto", "always", "never"] = "auto"
    """Validations drawn into TensorBoard; auto: in 1 % of the time, the last and the results in 10 % each."""
    threads: int | None = None
    """CPU threads of each rank. Default: as the run began; else OMP_NUM_THREADS, or the cores it may use."""
    compile: bool = False
    """torch.compile the model, once for all lengths; takes a C++ compiler and about a minute at the start."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for a setting that no training can have."""
        for name in ("epochs", "global_batch_size", "log_every", "validate_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_steps", "micro_batch_size", "checkpoint_every", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        if (self.threads or 1) > MOST_THREADS:
            raise ValueError(f"train.threads must be at most {MOST_THREADS}, not {self.threads}")
        if self.skip_budget < 0 or not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise ValueError(
                "train.skip_budget must not be negative, and train.timeout must be above 0 and at most "
                f"{LONGEST_TIMEOUT:.0e} seconds"
            )


@dataclass
class Config:
    """Everything that decides a run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    prototypes: PrototypesConfig = field(default_factory=PrototypesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def remember_secrets(self) -> None:
        """Have `credentials.redact` keep what is secret in the places of the data out of all texts."""
        for role in ROLES:
            remember_secrets(getattr(self.data, role) or "", self.data.storage_options)

    def validate(self) -> None:
        """Raise ValueError, naming the keys, for settings that are wrong or contradict each other."""
        check_finite(self)
        for section in (self.model, self.prototypes, self.loss, self.optim, self.train, self.data.select):
            section.validate()
        if self.data.damaged_budget < 0:
            raise ValueError(f"data.damaged_budget must not be negative, but is {self.data.damaged_budget}")
        if not 0 <= self.run.seed < 2**63:
            raise ValueError(f"run.seed must not be negative and must be below 2^63, but is {self.run.seed}")
        streams, batch = self.data.streams, self.train.global_batch_size
        if streams is not None and (streams < 1 or batch % streams):
            raise ValueError(f"data.streams must divide train.global_batch_size {batch}, but is {streams}")
        if self.prototypes.update == "ema" and self.model.awm == "adaptive" and self.loss.lambda_align == 0:
            raise ValueError(
                "prototypes.update=ema with loss.lambda_align=0: nothing draws the steps to them"
            )


def check_finite(config: Config) -> None:
    """Refuse settings that are NaN or infinite: they compare with nothing, so no other check would find them.

    Raises:
        ValueError: names the key.
    """
    try:
        found = find_not_finite(asdict(config))
    except RecursionError:
        raise ValueError("data.select or data.storage_options is nested without end") from None
    if found is not None:
        raise ValueError(f"{found[0]} must be a finite number, but is {found[1]}")


HELP = """Train AWTPN. Without a configuration it makes and learns a demo corpus.

Of a key that is given twice the last counts, so keys after --config override the file. A run goes on by
itself from the latest checkpoint in its folder.
"""
EXAMPLES = """examples:
  python launch/train.py                                                the demo, in a minute
  python launch/train.py --config configs/meld.yaml --optim.lr 3e-4     a file, and one key otherwise
  torchrun --nproc-per-node 8 launch/train.py --config configs/meld.yaml
  accelerate launch --config_file configs/accelerate/zero2.yaml launch/train.py --config configs/meld.yaml
"""


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Types and defaults as jsonargparse shows them, description and examples line by line."""


def make_parser() -> OneLineParser:
    """The parser of `launch/train.py`: --config FILE, --deepspeed FILE and every dotted key."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = OneLineParser(
        prog="train.py",
        usage="train.py [--config FILE] [--deepspeed FILE] [--SECTION.KEY VALUE ...]",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
        default_config_files=[],
        allow_abbrev=False,  # --train.epoch must not pass for --train.epochs
    )
    parser.keys, parser.places = {"deepspeed": str | None} | keys_of(Config), {}
    parser.add_argument("--config", action=CheckedFile, metavar="FILE", help="YAML file with the keys below")
    parser.add_argument("--deepspeed", type=str | None, metavar="FILE", help="DeepSpeed config (JSON)")
    # The `deepspeed` launcher passes it; its presence is how a run knows that launcher.
    parser.add_argument("--local_rank", type=int | None, help=SUPPRESS)
    parser.add_class_arguments(Config, nested_key=None)
    return parser


@dataclass(frozen=True)
class Launch:
    """What the command line says besides the configuration."""

    deepspeed_file: str | None = None
    by_deepspeed_launcher: bool = False


def parse_command_line(argv: Sequence[str]) -> tuple[Config, Launch]:
    """Read `argv` (without the program's name). Exits with a message on an unknown key or a wrong type.

    Raises:
        ValueError: settings that contradict each other.
    """
    remember_command(argv)
    parser = make_parser()
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
        parsed = parser.parse_args(arguments)
    except RecursionError:
        parser.error("a value is nested too deeply; write it plainly")
    values = parser.instantiate(parsed)
    config = Config(**{name: values[name] for name in Config.__dataclass_fields__})
    read_words_of_mappings(arguments, config.data)
    use_local_paths(config)
    config.remember_secrets()
    config.validate()
    return config, Launch(values.deepspeed, values.local_rank is not None)


def has_too_many_values(word: str) -> bool:
    """Whether a word of the command line, or what it gives a key, is YAML of too many aliases."""
    for text in (word, word.partition("=")[2]) if "*" in word else ():
        try:
            parse_yaml(text)
        except TooManyValuesError:
            return True
        except (yaml.YAMLError, ValueError, RecursionError):
            continue  # told when it is read
    return False


def use_local_paths(config: Config) -> None:
    """Replace the paths that a user wrote (`~/run`, `file:///run`) by paths on this machine.

    Raises:
        ValueError: one is a URL of another kind; names the key.
    """
    for section, keys in ((config.run, ("dir", "resume", "init_from")), (config.data, ("cache_dir",))):
        prefix = "run" if section is config.run else "data"
        for key in keys:
            if value := getattr(section, key):
                setattr(section, key, str(local_path(value, f"{prefix}.{key}")))


def read_words_of_mappings(arguments: Sequence[str], data: DataConfig) -> None:
    """Make values of `--data.select.test.fold 3` what they say, a number here: jsonargparse leaves texts."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if found := WITHIN_MAPPING.fullmatch(word):
            owner = data.storage_options if found[1] == "storage_options" else getattr(data.select, found[1])
            text = following if found[3] is None else found[3]
            if owner and owner.get(found[2]) == text:
                owner[found[2]] = scalar(text)


def scalar(text: str) -> Any:
    """A single value as JSON or YAML has it; text where it is none."""
    for read in (json.loads, yaml.safe_load):
        # PyYAML raises a plain ValueError for a date that is none.
        with contextlib.suppress(ValueError, yaml.YAMLError, RecursionError):
            value = read(text)
            return value if isinstance(value, bool | int | float | str | None) else text
    return text


def dump(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dicts, without what may hold credentials."""
    plain = asdict(config)
    plain["data"]["storage_options"] = {}
    for role in ROLES:
        if url := plain["data"][role]:
            plain["data"][role] = redact_url(url)
    return plain


def dump_yaml(config: Config) -> str:
    """The same as YAML, which `--config` reads."""
    return yaml.dump(dump(config), Dumper=Dumper, sort_keys=False)


class Dumper(yaml.SafeDumper):
    """Writes texts such as 1e3 in quotes: to PyYAML they are text, to jsonargparse numbers."""


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", POWER_OF_TEN, [*"+-.0123456789"])


def differing_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys, "section.key", of a configuration's `dump` that another one did not have or had otherwise."""
    return [
        f"{section}.{key}"
        for section, settings in now.items()
        for key, value in settings.items()
        if before.get(section, {}).get(key) != value
    ]


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 3}} -> {"train.epochs": 3}; lists as text, None and empty sections left out."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str) else json.dumps(value)
    return flat
