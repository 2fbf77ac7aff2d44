"""A line of the variants' file (`configs/ablations.yaml`) -> the variants that it stands for.

A line whose name holds `{term}` stands for a variant per loss term, with `{weight}` in its keys. One whose
name holds `{modality}` stands for a variant per modality in use; `{others}` are then all but this one.
`of_task` leaves out those that the task or the model of the runs does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from awtpn.config.schema import Config
from awtpn.learning.settings import CROSS_MODAL, TERMS
from awtpn.model.settings import NEW_KEYS, SETTINGS

Variants = dict[str, dict[str, Any]]  # name -> overrides by dotted key

LONG_NAMES = {"ce": "cross-entropy"}  # of terms, in the names of variants
MODALITIES = "model.modalities"
# Settings that not every task has -> the tasks that have them.
TASKS_OF_KEY = {
    "task.head": ("regression",),
    "task.levels": ("regression",),
    "loss.value_error": ("regression",),
    "loss.class_weights": ("classification", "multilabel"),
    "loss.focal_gamma": ("classification", "multilabel"),
    "loss.label_smoothing": ("classification", "multilabel"),
}
CROSS_ENTROPY = f"loss.{TERMS['ce']}"
# Settings that a baseline takes of these sections; it ignores the others.
OF_BASELINES = {
    "model": ("name", "shared_dim", "dropout", "modalities", "modality_dropout"),
    "loss": ("eta_ce", "class_weights", "focal_gamma", "label_smoothing"),
    "prototypes": ("check_every", "on_drift"),
}


def expand(variants: Variants, base: Config) -> Variants:
    """All variants that these lines stand for, as overrides which `base` can take."""
    expanded: Variants = {}
    for name, overrides in variants.items():
        if "{term}" in str(name):
            expanded |= of_terms(name, overrides)
        elif "{modality}" in str(name):
            taken = [variant.get(MODALITIES) for variant in expanded.values()]
            expanded |= of_modalities(name, overrides, list(base.model.modalities), taken)
        else:
            expanded[name] = overrides
    return {
        name: without_unused(by_given_keys(overrides, base), base) for name, overrides in expanded.items()
    }


def of_terms(name: str, overrides: dict[str, Any]) -> Variants:
    """A variant for each loss term."""
    return {
        name.replace("{term}", LONG_NAMES.get(term, term)): {
            str(key).replace("{weight}", weight): value for key, value in overrides.items()
        }
        for term, weight in TERMS.items()
    }


def of_modalities(name: str, overrides: dict[str, Any], used: list[str], taken: list[Any]) -> Variants:
    """A variant for each modality in use.

    Where it selects modalities, it is left out if it would be the base, or the same as another variant: with
    two modalities, without the one is the other alone.

    Args:
        name, overrides: the line.
        used: modalities of the base.
        taken: selections of modalities by other variants.
    """
    variants = {
        name.replace("{modality}", modality): {
            str(key).replace("{modality}", modality): fill_in(value, modality, used)
            for key, value in overrides.items()
        }
        for modality in used
    }
    return {
        name: of
        for name, of in variants.items()
        if MODALITIES not in of or (of[MODALITIES] not in ([], used) and of[MODALITIES] not in taken)
    }


def fill_in(value: Any, modality: str, used: Sequence[str]) -> Any:
    """The value of an override, for one modality."""
    if value == "{others}":
        return [name for name in used if name != modality]
    if isinstance(value, list):
        return [fill_in(each, modality, used) for each in value]
    return value.replace("{modality}", modality) if isinstance(value, str) else value


def by_given_keys(overrides: dict[str, Any], base: Config) -> dict[str, Any]:
    """The overrides, with keys of NEW_KEYS replaced by those of the map, where `base` has the latter."""
    given = {
        f"{MODALITIES}.{name}.{setting}"
        for name, settings in base.model.modalities.items()
        for setting in SETTINGS
        if getattr(settings, setting) is not None
    }
    names = {old: new for old, new in NEW_KEYS.items() if new in given}
    return {names.get(key, key): value for key, value in overrides.items()}


def without_unused(overrides: dict[str, Any], base: Config) -> dict[str, Any]:
    """The overrides, with those of settings of `base` that name a modality which they leave out."""
    kept = overrides.get(MODALITIES)
    if not isinstance(kept, list):
        return overrides
    pairs = {"-".join(pair) for pair in combinations(kept, 2)}
    found = {"loss.pair_weights": (base.loss.pair_weights, pairs)}
    if isinstance(base.model.modality_dropout, dict):
        found["model.modality_dropout"] = (base.model.modality_dropout, set(kept))
    changed: dict[str, Any] = {
        key: {name: value for name, value in given.items() if name in possible}
        for key, (given, possible) in found.items()
        if key not in overrides and not given.keys() <= possible
    }
    if pairs and not any(base.loss.pair_weights.get(pair, 1.0) for pair in pairs):
        # `base` compares none of these pairs, so neither does the variant.
        changed |= {"loss.pair_weights": {}} | {f"loss.{TERMS[term]}": 0.0 for term in CROSS_MODAL}
    return overrides | changed


def of_task(variants: Variants, base: Config, task: str) -> tuple[Variants, dict[str, str]]:
    """The variants that a task has, and by name why each of the others is left out.

    Args:
        variants: of `expand`.
        base: the configuration that they change.
        task: type of the task of the runs.
    """
    reasons = {name: _why_not(overrides, base, task) for name, overrides in variants.items()}
    kept = {name: overrides for name, overrides in variants.items() if reasons[name] is None}
    return kept, {name: why for name, why in reasons.items() if why is not None}


def _why_not(overrides: dict[str, Any], base: Config, task: str) -> str | None:
    """Why a variant is none of this task, or would not change a baseline; None if it is one to train."""
    network = overrides.get("model.name", base.model.name)
    if network != "awtpn":
        if all(ignored_by_baselines(key) for key in overrides):
            return f"{network} has none of it"
        if overrides.get(CROSS_ENTROPY) == 0:
            return f"{network} has no other loss"
        if overrides.get("task.head") == "linear":
            return f"{network} has no linear head"
    for key in overrides:
        if task not in (tasks := TASKS_OF_KEY.get(key, (task,))):
            return f"{key} is for {' and '.join(tasks)}"
    if task != "regression":
        return None
    if overrides.keys() == {CROSS_ENTROPY} and base.task.head == "linear":
        return "task.head=linear has no cross-entropy"
    if overrides.keys() <= TASKS_OF_KEY.keys() and all(
        _setting(base, key) == value for key, value in overrides.items()
    ):
        return "it is the base"
    return None


def ignored_by_baselines(key: str) -> bool:
    """Whether a baseline does not use the setting `key`, such as "model.awm"."""
    section, _, name = key.partition(".")
    if key.startswith(f"{MODALITIES}."):  # a weight or a distance scale
        return True
    return section in OF_BASELINES and name not in OF_BASELINES[section]


def _setting(config: Config, key: str) -> Any:
    """The value of a key "section.name"."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)
