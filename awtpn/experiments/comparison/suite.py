"""The suite of a comparison, read from a YAML file: datasets, models, and which further runs there are.

`configs/comparison/suite.yaml` shows every key. A model is a set of overrides of the configuration, or
`linear`: the baseline of `awtpn.experiments.baseline`, of which no run is trained.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from awtpn.config.project_files import SUITE_FILE, find_file
from awtpn.config.suggestions import similar
from awtpn.experiments.ablation import arguments_of
from awtpn.experiments.folds import FOLD_KEYS, OWN_KEYS, TARGET_KEYS
from awtpn.experiments.sweep import Point, grid
from shards.safe_io.bounded_yaml import parse_yaml
from shards.safe_io.printable import listed
from shards.storage.credentials import has_secrets

LINEAR = "linear"
HEADLINE = "awtpn"
DATA_FOLDER, NESTED_FOLDER, CURVES_FOLDER = "data", "nested", "curves"
RESERVED = (DATA_FOLDER, NESTED_FOLDER, CURVES_FOLDER)
MOST_POINTS = 5  # of a curve
# Names are folders, and stand in Markdown and HTML.
NAME = re.compile(r"\w[\w.+ -]*")
KEYS = (
    *("datasets", "models", "headline", "reference", "grid", "grids"),
    *("nested", "nested_models", "nested_seeds", "curves"),
)
DATASET_KEYS = ("source", "format", "pack", "url", "data", "by", "arguments")
CURVES_KEYS = ("format", "base", "by", "arguments", "models", "seeds", "parameters")


@dataclass(frozen=True)
class Dataset:
    """A dataset to compare on.

    Attributes:
        name: in tables, and of its folder.
        by: metadata column whose values are left out in turn; None: its own splits.
        format: of `source`, which is packed; None: it is packed already.
        source: relative to the folder of sources; None where the format reads nothing.
        pack: options of the format.
        url: where it is packed already; None with `format`, or if the command line names the data.
        place: name of the folder of the packed data; another entry's if it takes that one's data.
        arguments: overrides for all runs on it.
    """

    name: str
    by: str | None = None
    format: str | None = None
    source: str | None = None
    pack: Mapping[str, Any] = field(default_factory=dict)
    url: str | None = None
    place: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_named_here(self) -> bool:
        """Whether the suite says where the data is; else the command line does."""
        return self.format is not None or self.url is not None


@dataclass(frozen=True)
class Model:
    """A model to compare: its overrides by dotted key; None for the linear baseline."""

    name: str
    overrides: Mapping[str, Any] | None

    @property
    def is_linear(self) -> bool:
        return self.overrides is None

    @property
    def arguments(self) -> list[str]:
        """The overrides as words of the command line."""
        return arguments_of(self.overrides or {})


@dataclass(frozen=True)
class Curves:
    """Made-up datasets that differ from `base` in one parameter.

    Attributes:
        format: the source that makes them.
        base: its options.
        parameters: by option the values that it takes, in place of the one of `base`.
        models: names of the models to train.
        seeds: of their runs.
        by, arguments: as of `Dataset`.
    """

    format: str
    base: Mapping[str, Any]
    parameters: Mapping[str, Sequence[Any]]
    models: Sequence[str]
    seeds: Sequence[int]
    by: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """What is compared.

    Attributes:
        datasets, models: by name, in the order of the tables.
        headline: the model whose differences to all others are shown.
        reference: the model that the curves show it beside; None if it is left out.
        points: of each model that is trained, the settings that the nested choice is made from.
        nested: names of datasets on which settings are chosen.
        nested_models: names of the models that are trained there.
        nested_seeds: of these runs.
        curves: None if there are none.
    """

    datasets: Mapping[str, Dataset]
    models: Mapping[str, Model]
    headline: str
    reference: str | None
    points: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    nested: Sequence[str] = ()
    nested_models: Sequence[str] = ()
    nested_seeds: Sequence[int] = (0,)
    curves: Curves | None = None


def read_suite(path: Path = SUITE_FILE, datasets: Sequence[str] = (), models: Sequence[str] = ()) -> Suite:
    """Read a suite.

    Args:
        path: the file.
        datasets, models: names of those to keep; all if there are none.

    Raises:
        ValueError: there is no such file, it is not of this form, or lacks a name; says where.
    """
    path = find_file(path, "--suite")
    try:
        content = parse_yaml(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = str(error).splitlines()[0] if str(error) else "nested without end"
        raise ValueError(f"{path} is not YAML: {cause}") from None
    try:
        return select(parse_suite(content), datasets, models)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def parse_suite(content: Any) -> Suite:
    """The suite that the content of a file describes.

    Raises:
        ValueError: names the key.
    """
    content = _mapping(content, "the file", KEYS)
    for key in ("datasets", "models"):
        if not content.get(key):
            raise ValueError(f"there are no {key}; write {key}: {{NAME: ...}}")
    entries = _mapping(content["datasets"], "datasets")
    datasets = {_checked_name(name): _dataset(name, entry, entries) for name, entry in entries.items()}
    models = {
        _checked_name(name): _model(name, entry)
        for name, entry in _mapping(content["models"], "models").items()
    }
    _check_folders(datasets)
    _check_folders(models)
    trained = [name for name, model in models.items() if not model.is_linear]
    if not trained:
        raise ValueError("models: at least one must be trained, so not be linear")
    headline = content.get("headline", HEADLINE if HEADLINE in trained else trained[0])
    linear = next((name for name, model in models.items() if model.is_linear), None)
    reference = content.get("reference", linear)
    for key, name, there in (("headline", headline, trained), ("reference", reference, [*models])):
        if name not in there and not (key == "reference" and name is None):
            raise ValueError(f"{key}: {name} is none of the models; choose one of {', '.join(there)}")
    grids = _mapping(content.get("grids"), "grids", trained)
    common = content.get("grid")
    return Suite(
        datasets,
        models,
        headline,
        reference,
        {
            name: _points(grids.get(name, common), f"grids.{name}" if name in grids else "grid")
            for name in trained
        },
        _names(content.get("nested", ()), "nested", datasets),
        _names(content.get("nested_models", trained), "nested_models", trained),
        _seeds(content.get("nested_seeds", [0]), "nested_seeds"),
        _curves(content["curves"], models) if content.get("curves") else None,
    )


def select(suite: Suite, datasets: Sequence[str] = (), models: Sequence[str] = ()) -> Suite:
    """The suite with the named datasets and models alone; with all where none are named.

    Raises:
        ValueError: there is no such name, or none of the models is trained.
    """
    for given, there, what in ((datasets, suite.datasets, "dataset"), (models, suite.models, "model")):
        if unknown := [name for name in given if name not in there]:
            raise ValueError(f"there is no {what} {unknown[0]!r}; it has {', '.join(there)}")
    kept = {name: model for name, model in suite.models.items() if not models or name in models}
    trained = [name for name, model in kept.items() if not model.is_linear]
    if not trained:
        raise ValueError("--models: name at least one that is trained, not the linear one alone")
    curves = suite.curves
    if curves is not None:
        of_curves = [name for name in curves.models if name in kept]
        curves = replace(curves, models=of_curves) if set(of_curves) & set(trained) else None
    return replace(
        suite,
        datasets={name: of for name, of in suite.datasets.items() if not datasets or name in datasets},
        models=kept,
        headline=suite.headline if suite.headline in kept else trained[0],
        reference=suite.reference if suite.reference in kept else None,
        points={name: points for name, points in suite.points.items() if name in kept},
        nested=[name for name in suite.nested if not datasets or name in datasets],
        nested_models=[name for name in suite.nested_models if name in kept],
        curves=curves,
    )


def with_own_data(suite: Suite, name: str, by: str | None) -> Suite:
    """The models of a suite, on the data that the command line names."""
    return replace(suite, datasets={name: Dataset(name, by)}, nested=[name], curves=None)


def name_of_data(url: str) -> str:
    """A name for the data at a URL: the last part of its path, if it can be one."""
    words = re.split(
        r"[/\\]", url.partition("#")[0].partition("?")[0].removesuffix("/manifest.json").rstrip("/")
    )
    name = re.sub(r"[^\w.+-]", "_", words[-1]).strip("._-+ ")
    return name if NAME.fullmatch(name) and name.casefold() not in RESERVED else "own-data"


# --- Parts of the file ---------------------------------------------------------------------------


def _mapping(given: Any, where: str, keys: Collection[str] | None = None) -> Mapping[str, Any]:
    """A mapping with names as keys, and only `keys` if they are given."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: write NAME: VALUE lines, not {given!r:.40}")
    for key in given:
        if not isinstance(key, str):
            raise ValueError(f"{where}: {key!r:.40} is no name; put it in quotes")
        if keys is not None and key not in keys:
            alike = similar(key, keys)
            hint = f"did you mean {' or '.join(alike)}?" if alike else f"it takes {listed(keys)}"
            raise ValueError(f"{where}: there is no {key!r:.40}; {hint}")
    return given


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name) or name.endswith((" ", ".")) or name.casefold() in RESERVED:
        raise ValueError(
            f"{name!r:.60} cannot be a name; write letters, digits, '_', '.', '+', '-' and spaces, and none "
            f"of {', '.join(RESERVED)}"
        )
    return name


def folder_of(name: str) -> str:
    """The name of the folder of a dataset or a model."""
    return name.replace(" ", "-")


def _check_folders(names: Collection[str]) -> None:
    taken: dict[str, str] = {}
    for name in names:
        # Some file systems do not distinguish upper and lower case.
        if (other := taken.setdefault(folder_of(name).casefold(), name)) != name:
            raise ValueError(f"{name!r} would share a folder with {other!r}; choose another name")


def _dataset(name: str, entry: Any, entries: Mapping[str, Any]) -> Dataset:
    where = f"datasets.{name}"
    given = _mapping(entry, where, DATASET_KEYS)
    places = [key for key in ("format", "url", "data") if given.get(key) is not None]
    if len(places) != 1:
        raise ValueError(f"{where}: give one of format, url and data, not {listed(places) or 'none'}")
    for key in ("source", "format", "url", "data", "by"):
        if given.get(key) is not None and not isinstance(given[key], str):
            raise ValueError(f"{where}.{key}: write text, not {given[key]!r:.40}")
    if places != ["format"] and (extra := [key for key in ("source", "pack") if key in given]):
        raise ValueError(f"{where}: {extra[0]} is for format, which it does not have")
    by = given.get("by")
    refused = (*OWN_KEYS, *FOLD_KEYS, "data.train")
    arguments = _overrides(given.get("arguments"), f"{where}.arguments", refused)
    if places == ["data"]:
        other = given["data"]
        if not isinstance(entries.get(other), Mapping) or "data" in entries[other]:
            raise ValueError(f"{where}: data: {other}: give the name of a dataset that has url or format")
        return replace(_dataset(other, entries[other], entries), name=name, by=by, arguments=arguments)
    if given.get("url") and has_secrets(given["url"]):
        raise ValueError(f"{where}.url holds credentials; give them in --data.storage_options")
    options = _mapping(given.get("pack"), f"{where}.pack")
    return Dataset(
        name, by, given.get("format"), given.get("source"), options, given.get("url"), name, arguments
    )


def _model(name: str, entry: Any) -> Model:
    where = f"models.{name}"
    if entry == LINEAR:
        return Model(name, None)
    if isinstance(entry, str):
        raise ValueError(f"{where}: write {LINEAR}, or overrides, {{dotted.key: value}}; not {entry!r:.40}")
    return Model(name, _overrides(entry, where, (*OWN_KEYS, *FOLD_KEYS, *TARGET_KEYS)))


def _overrides(given: Any, where: str, refused: Sequence[str]) -> Mapping[str, Any]:
    overrides = _mapping(given, where)
    for key, value in overrides.items():
        if any(key == own or key.startswith(f"{own}.") for own in refused):
            why = (
                "which each run sets itself"
                if key not in TARGET_KEYS
                else ("but figures of different targets cannot be compared")
            )
            raise ValueError(f"{where} sets {key}, {why}; leave it out")
        if has_secrets(f"--{key}={value}"):
            raise ValueError(f"{where}: {key} holds credentials; give them in --data.storage_options")
    return overrides


def _points(given: Any, where: str) -> list[Point]:
    """The settings of a grid {key: [values]}, the last key fastest; one empty setting without a grid."""
    axes = _mapping(given, where)
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{where}.{key}: write its values as a list")
    words = {
        key: [word.partition("=")[2] for value in values for word in arguments_of({key: value})]
        for key, values in axes.items()
    }
    try:
        grid([f"{key}={values[0]}" for key, values in words.items()])  # refuses keys that runs set themselves
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).removeprefix('--sweep ')}") from None
    points: list[Point] = [{}]
    for key, values in words.items():
        points = [{**point, key: value} for point in points for value in values]
    return points


def _names(given: Any, where: str, there: Collection[str]) -> list[str]:
    if not isinstance(given, list | tuple):
        raise ValueError(f"{where}: write a list of names")
    if unknown := [name for name in given if name not in there]:
        raise ValueError(f"{where}: there is no {unknown[0]!r:.40}; there are {', '.join(there)}")
    return list(given)


def _seeds(given: Any, where: str) -> list[int]:
    numbers = given if isinstance(given, list) else [None]
    if (
        not numbers
        or any(type(seed) is not int or seed < 0 for seed in numbers)
        or len({*numbers}) < len(numbers)
    ):
        raise ValueError(f"{where}: write a list of different numbers from 0")
    return list(numbers)


def _curves(entry: Any, models: Mapping[str, Model]) -> Curves:
    given = _mapping(entry, "curves", CURVES_KEYS)
    parameters = _mapping(given.get("parameters"), "curves.parameters")
    for name, values in parameters.items():
        if not isinstance(values, list) or not 1 <= len(values) <= MOST_POINTS:
            raise ValueError(f"curves.parameters.{name}: write a list of 1 to {MOST_POINTS} values")
    if not parameters:
        raise ValueError("curves: there are no parameters; write parameters: {OPTION: [values]}")
    names = _names(given.get("models", list(models)), "curves.models", models)
    if all(models[name].is_linear for name in names):
        raise ValueError("curves.models: name at least one that is trained")
    return Curves(
        str(given.get("format", "synthetic")),
        _mapping(given.get("base"), "curves.base"),
        parameters,
        names,
        _seeds(given.get("seeds", [0]), "curves.seeds"),
        given.get("by"),
        _overrides(given.get("arguments"), "curves.arguments", (*OWN_KEYS, *FOLD_KEYS, "data.train")),
    )
