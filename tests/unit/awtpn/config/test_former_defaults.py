"""A run of an earlier version is resumed with the settings that it began with."""

from __future__ import annotations

from typing import Any

from awtpn.config.former_defaults import keep_former_defaults
from awtpn.config.schema import KEYS_SINCE, Config, dump


def resumed(recorded: dict[str, Any], **model: Any) -> Config:
    """The configuration of a command without settings (but those of `model`), which resumes the run."""
    config = Config()
    for key, value in model.items():
        setattr(config.model, key, value)
    keep_former_defaults(config, recorded)
    return config


def test_a_run_of_today_changes_nothing() -> None:
    assert resumed(dump(Config())) == Config()


def test_a_run_of_0_4_0_keeps_its_defaults() -> None:
    recorded = dump(Config())
    del recorded["model"]["statistics_dropout"]
    recorded["optim"]["weight_decay"] = 1.0
    expected = Config()
    expected.model.statistics_dropout, expected.optim.weight_decay = 0.0, 1.0
    assert resumed(recorded) == expected
    assert resumed(recorded, statistics_dropout=0.3).model.statistics_dropout == 0.3, "a given value stays"


def test_a_run_of_0_3_keeps_its_defaults_and_weights() -> None:
    recorded = dump(Config())
    for section, keys in KEYS_SINCE.items():
        for key in keys:
            recorded.get(section, {}).pop(key, None)
    recorded["optim"] |= {"lr": 1e-3, "weight_decay": 1e-4, "warmup_steps": 20}
    recorded["model"] |= {"dropout": 0.1, "modalities": {"audio": {"weight": 0.3}, "video": {"weight": 0.7}}}
    config = resumed(recorded)
    assert (config.model.statistics, config.model.distances) == (False, "absolute")
    assert (config.model.dropout, config.optim.lr, config.train.min_steps) == (0.1, 1e-3, 0)
    assert [given.weight for given in config.model.modalities.values()] == [0.3, 0.7]
    assert resumed(recorded, dropout=0.2).model.dropout == 0.2
