"""The configuration of a run: its sections together, checks between them, and their form on disk."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import yaml

from awtpn.config.settings import ROLES, DataConfig, RunConfig, TrackConfig, TrainConfig
from awtpn.learning.settings import AugmentConfig, LossConfig, OptimConfig, PrototypesConfig
from awtpn.metrics.summary import check_best_by
from awtpn.model.encoders.settings import encoder_settings
from awtpn.model.settings import FORMER_MODEL, PUBLISHED_WEIGHTS, ModelConfig, TaskConfig
from shards.safe_io.json_text import find_not_finite
from shards.storage.credentials import redact_url, remember_secrets
from shards.storage.local_path import is_remote

POWER_OF_TEN = re.compile(r"[-+]?[\d_]*\.?[\d_]*[eE][-+]?\d+")


@dataclass
class Config:
    """Everything that decides a run."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    # Not dict[str, EncoderSettings]: jsonargparse would want every setting of each.
    encoder: dict = field(default_factory=dict)
    """Encoders to train with the model, by modality that the data holds as recordings:
    {audio: {model: facebook/hubert-base-ls960, tune: lora}}. Default: none, the data holds features."""
    prototypes: PrototypesConfig = field(default_factory=PrototypesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def remember_secrets(self) -> None:
        """Register the credentials in data URLs and options, so that `credentials.redact` hides them."""
        for role in ROLES:
            remember_secrets(getattr(self.data, role) or "", self.data.storage_options)
        for address in (self.run.dir, self.run.init_from):
            remember_secrets(address or "", self.run.storage_options)

    def validate(self) -> None:
        """Raise ValueError, naming the keys, for settings that are wrong or contradict each other."""
        check_finite(self)
        self.encoder = encoder_settings(self.encoder)
        sections = (self.run, self.task, self.model, self.prototypes, self.loss, self.optim, self.augment)
        for section in (*sections, self.train, self.track, self.data.select):
            section.validate()
        if self.task.type is not None:  # else when the data is known
            self.check_task(self.task.type)
        self.check_network()
        self.check_encoders()
        if self.data.threads is not None and self.data.threads < 1:
            raise ValueError(f"data.threads must be at least 1, but is {self.data.threads}")
        if self.data.damaged_budget < 0:
            raise ValueError(f"data.damaged_budget must not be negative, but is {self.data.damaged_budget}")
        if not 0 <= self.run.seed < 2**63:
            raise ValueError(f"run.seed must not be negative and must be below 2^63, but is {self.run.seed}")
        streams, batch = self.data.streams, self.train.global_batch_size
        if streams is not None and (streams < 1 or batch % streams):
            raise ValueError(f"data.streams must divide train.global_batch_size {batch}, but is {streams}")

    def check_network(self) -> None:
        """Raise ValueError, naming the keys, for settings by which the network cannot learn.

        Settings that a baseline does not use are not looked at, so that it can have AWTPN's configuration.
        """
        if self.model.name != "awtpn":
            if self.loss.eta_ce == 0:
                raise ValueError(
                    f"loss.eta_ce=0 with model.name={self.model.name}, which is trained by the cross-entropy "
                    "alone: raise loss.eta_ce"
                )
            return
        self.loss.check_pairs(self.model.modalities)
        if self.prototypes.update == "ema" and self.model.awm == "adaptive" and self.loss.lambda_align == 0:
            raise ValueError(
                "prototypes.update=ema with loss.lambda_align=0: no loss pulls the time steps to the "
                "prototypes; raise loss.lambda_align, or take prototypes.update=gradient"
            )

    def check_encoders(self) -> None:
        """Raise ValueError, naming the keys, for encoders that the run cannot have."""
        for name, settings in self.encoder.items():
            settings.validate(name)
            if name not in self.model.modalities:
                raise ValueError(
                    f"encoder.{name} is given, but {name} is not among model.modalities "
                    f"{', '.join(self.model.modalities)}"
                )
        if self.encoder and self.loss.negatives == "reference":
            raise ValueError(
                "loss.negatives=reference permutes whole micro-batches, and encoders cut these by length: "
                "set loss.negatives to group"
            )
        if self.encoder and self.train.compile:
            raise ValueError("train.compile=true does not compile encoders: leave it out")

    def check_task(self, task_type: str) -> None:
        """Raise ValueError, naming the key, for settings that a task does not have."""
        self.task.check_task(task_type)
        self.loss.check_task(task_type)
        check_best_by(self.train.best_by, task_type)


@dataclass(frozen=True)
class Launch:
    """What the command line says besides the configuration."""

    deepspeed_file: str | None = None
    by_deepspeed_launcher: bool = False


def check_finite(config: Config) -> None:
    """Refuse settings that are NaN or infinite; other checks would pass NaN, which compares with nothing.

    Raises:
        ValueError: names the key.
    """
    try:
        found = find_not_finite(asdict(config))
    except RecursionError:
        raise ValueError("data.select or a storage_options is nested without end") from None
    if found is not None:
        raise ValueError(f"{found[0]} must be a finite number, but is {found[1]}")


# Keys of `run` that take a path or a URL, which may hold credentials.
RUN_ADDRESSES = ("dir", "resume", "init_from")


def dump(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dicts, without what may hold credentials."""
    plain = asdict(config) | {"model": config.model.record()}
    plain["data"]["storage_options"] = plain["run"]["storage_options"] = {}
    for key in RUN_ADDRESSES:
        if (folder := plain["run"][key]) and is_remote(folder):
            plain["run"][key] = redact_url(folder)
    for role in ROLES:
        if url := plain["data"][role]:
            plain["data"][role] = redact_url(url)
    return plain


# Keys that an earlier version did not have -> the value by which it behaved.
KEYS_SINCE: dict[str, dict[str, Any]] = {
    "run": {"local_dir": None, "upload_every": 30.0, "storage_options": {}},
    "data": {"target": None, "threads": None},
    "model": FORMER_MODEL,
    "task": {"type": None, "levels": 7, "head": "levels"},
    "loss": {"pair_weights": {}, "focal_gamma": 0.0, "label_smoothing": 0.0, "value_error": "squared"},
    "optim": {"warmup_share": 0.05},
    "augment": asdict(AugmentConfig()),  # off
    "train": {
        **{"best_by": None, "min_steps": 0, "patience": None, "ema_decay": 0.0, "profile": None},
        "async_checkpoint": True,  # it changes nothing that is learned
    },
    "track": asdict(TrackConfig()),  # it changes nothing that is learned
}
# Sections that an earlier version did not have.
SECTIONS_SINCE = ("task", "augment", "track")


def in_todays_form(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version dumped, as `dump` writes them now, with the same meaning."""
    for section, values in KEYS_SINCE.items():
        given = settings.get(section, {} if section in SECTIONS_SINCE else None)
        if isinstance(given, dict):
            settings = settings | {section: values | given}
    model = settings.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("modalities"), list):
        return settings
    # Then audio was the anchor, in whatever order they were named.
    model = model | {"modalities": [name for name in PUBLISHED_WEIGHTS if name in model["modalities"]]}
    known = {key: value for key, value in model.items() if key in ModelConfig.__dataclass_fields__}
    unknown = {key: value for key, value in model.items() if key not in known}
    return settings | {"model": ModelConfig(**known).record() | unknown}


def dump_yaml(config: Config) -> str:
    """The same as YAML, which `--config` reads."""
    return yaml.dump(dump(config), Dumper=Dumper, sort_keys=False)


class Dumper(yaml.SafeDumper):
    """Writes strings such as 1e3 in quotes: PyYAML reads them as strings, jsonargparse as numbers."""


Dumper.add_implicit_resolver("tag:yaml.org,2002:float", POWER_OF_TEN, [*"+-.0123456789"])


def differing_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The keys "section.key" of the `dump` `now` that `before` lacks or has with another value."""
    return [
        f"{section}.{key}"
        for section, settings in now.items()
        for key, value in (flatten(settings) if section == "encoder" else settings).items()
        if (former := _former(before, section).get(key)) != value
        # Of pairs of modalities the first is the anchor, so their order is a setting, too.
        or (key == "modalities" and list(former) != list(value))
    ]


def _former(before: Mapping[str, Any], section: str) -> dict[str, Any]:
    found: dict[str, Any] = before.get(section, {})
    return flatten(found) if section == "encoder" else found


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"epochs": 3}} -> {"train.epochs": 3}; lists as text, None and empty sections left out."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value if isinstance(value, int | float | str) else json.dumps(value)
    return flat
