"""What a run of an earlier version keeps: the settings that it began with, where today's defaults differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from awtpn.config.schema import KEYS_SINCE, Config

# Defaults of version 0.3 that are others now.
DEFAULTS_OF_0_3: dict[str, dict[str, Any]] = {
    "model": {"dropout": 0.1},
    "loss": {"lambda_align": 1.0, "lambda_intra": 0.5, "lambda_inter": 0.5, "lambda_contrast": 0.2},
    "optim": {"lr": 1e-3, "weight_decay": 1e-4, "warmup_steps": 20},
    "train": {"epochs": 30, "validate_every": 1},
}
# The same of version 0.4.0.
DEFAULTS_OF_0_4_0: dict[str, dict[str, Any]] = {"optim": {"weight_decay": 1.0}}


def keep_former_defaults(config: Config, recorded: Mapping[str, Any]) -> None:
    """Give `config` the former defaults that a run of an earlier version began with, in place of today's.

    So the command that began the run resumes it. A key that is given, or that the run had another value of,
    stays as it is.

    Args:
        config: of the command; it is changed.
        recorded: the run's config.yaml, as it is in the file.
    """
    model, today = recorded.get("model", {}), Config()
    if "statistics_dropout" in model:
        return  # recorded by this version
    of_0_3 = "statistics" not in model
    changed = DEFAULTS_OF_0_3 if of_0_3 else DEFAULTS_OF_0_4_0
    for section in KEYS_SINCE.keys() | changed.keys():
        of_run, now, default = recorded.get(section, {}), getattr(config, section), getattr(today, section)
        unknown = {
            key: value for key, value in KEYS_SINCE.get(section, {}).items() if of_0_3 or key not in of_run
        }
        for key, former in (unknown | changed.get(section, {})).items():
            if getattr(now, key) == getattr(default, key) and of_run.get(key, former) == former:
                setattr(now, key, former)
    if of_0_3:
        keep_former_weights(config, recorded)


def keep_former_weights(config: Config, recorded: Mapping[str, Any]) -> None:
    """Give modalities without a weight those of the run: 0.3 and 0.7, where today's default is 1."""
    modalities = recorded.get("model", {}).get("modalities")
    for name, given in config.model.modalities.items():
        of_run = modalities.get(name) if isinstance(modalities, Mapping) else None
        if not config.model.has_old_key(name, "weight") and given.weight is None and of_run:
            given.weight = of_run.get("weight")
