"""Arrays of all utterances in one `.npz`: features per modality, `label`, `ids`,
and optionally `label_names`, `split` and metadata.

The features X of a modality are one of

    X [sum T, D] with X_offsets [U + 1], or with X_lengths [U]
    X [U, T, D], and if it is padded at the end X_lengths [U]: steps that are not padding, 0 to T (0: missing)

`label` [U] holds whole numbers, named by `label_names`, or names; `ids` [U] and `split` [U] are text. Every
further array of U entries is metadata; NaN is a missing number. A column [U, 1] is read as [U], bytes as
UTF-8 text, and these names in upper or lower case. An utterance whose label is NaN or empty is a bad
utterance.

With another target than classes no `label` is needed. Its arrays are columns [U], or one array [U, K], whose
columns `target_names` [K] names (default NAME_0, NAME_1 and so on). NaN is a missing value:

    awtpn pack x.npz data/vad --format npz --target regression --target_columns valence=1:5,arousal=1:5
    awtpn pack x.npz data/emotions --format npz --target multilabel --target_columns emotions=0:3
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.format.labels import found_classes, given_classes, has_labels, label_name, text_of
from shards.format.schema import BadSample, Sample
from shards.format.targets import CLASSES
from shards.safe_io.expansion import load_npz
from shards.sources.base import Source, class_names, log_unused, logger, named_splits, split_of
from shards.sources.reading.typed_targets import Bounds, TypedTarget, column_bounds, typed_target

SPLIT = "all"
NAMES = ("ids", "label", "split", "label_names", "target_names")
# Other names that files use for them.
ALIASES = {"ids": ("id", "keys"), "label": ("labels",), "split": ("splits",)}
LENGTHS = ("lengths", "length", "lens", "len")
# Names of arrays that may describe padding, but not of which modality, or not as lengths.
ANY_LENGTHS = re.compile(r"(.*_)?(lengths?|lens?|seq_?len|(n|num)_(steps|frames))", re.IGNORECASE)
ANY_MASK = re.compile(r"(.*_)?masks?", re.IGNORECASE)


def read(
    source: str | Path,
    labels: list[str] | None = None,
    target: Literal["classification", "regression", "multilabel"] = "classification",
    target_columns: list[str] | None = None,
) -> Source:
    """Read packed arrays.

    Args:
        source: the `.npz` file: X [sum T, D] with X_offsets [U + 1], or X [U, T, D] with X_lengths [U].
            Loaded into memory.
        labels: class names in label order; default the file's `label_names`, else class_0, class_1 and so on.
        target: what is to be recognized: classification (the label), regression (values) or multilabel
            (several labels at once).
        target_columns: arrays of values or of labels, each NAME or NAME=LOW:HIGH, such as valence=1:5; their
            shape is [U], or [U, K] with the names `target_names`. NaN is a missing value.

    Raises:
        ValueError: no such file, or arrays of another layout; names the array.
    """
    path = Path(source)
    try:
        arrays = load_npz(path, str(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    arrays = _standard_names(_text(arrays, path))
    bounds = column_bounds(target_columns, target, str(path))
    for name in ("ids",) if bounds else ("ids", "label"):
        if name not in arrays:
            raise ValueError(f"{path}: array {name!r} is missing; it has {sorted(arrays)}")
    named = [str(name) for name in arrays.pop("label_names", np.array([])).reshape(-1)]
    single = [name for name, array in arrays.items() if array.ndim == 0]
    log_unused(single, str(path), "arrays of a single value are")
    arrays = {name: _column(array) for name, array in arrays.items() if array.ndim}
    ids = _per_utterance(arrays, "ids", path)
    own = _own_target(arrays, target, bounds, len(ids), path) if bounds else None
    if len(arrays.get("target_names", ids)) != len(ids):
        # They name columns of an array that is not the target now.
        del arrays["target_names"]
        log_unused(["target_names"], str(path), "arrays are")
    label = _per_utterance(arrays, "label", path) if "label" in arrays else np.full(len(ids), "")
    has_classes = not own or has_labels(label)
    split = _per_utterance(arrays, "split", path) if "split" in arrays else np.full(len(ids), SPLIT)
    if labels and not has_classes:
        raise ValueError(f"{path}: --labels names classes, but no utterance has a label; leave --labels out")
    label_names, classes = _classes(label, labels or named, path) if has_classes else ([None] * len(ids), [])
    splits = named_splits(split, str(path))
    features = {name: _steps(arrays, name, path) for name in _modalities(arrays)}
    meta = {
        name: array
        for name, array in arrays.items()
        if name not in features and not any(name in _layout_arrays(arrays, modality) for modality in features)
    }
    per_utterance = {
        **{name: len(first) for name, (_, first, _) in features.items()},
        **{name: len(array) for name, array in meta.items()},
        "label": len(label),
        "split": len(split),
    }
    for name, length in per_utterance.items():
        if length != len(ids):
            raise ValueError(f"{path}: {name} has {length} utterances, ids {len(ids)}")
    if not features:
        raise ValueError(f"{path}: no features; expected X [sum T, D] with X_offsets [U + 1], or X [U, T, D]")
    _check_padding(arrays, list(features), meta, path)

    def samples() -> Iterator[Sample | BadSample]:
        for i in range(len(ids)):
            key = text_of(ids[i])
            try:
                yield Sample(
                    key=key,
                    split=split_of(split[i], splits),
                    label=label_name(label_names[i], classes) if has_classes else None,
                    features={name: x[first[i] : end[i]] for name, (x, first, end) in features.items()},
                    meta={name: _plain(array[i].tolist()) for name, array in meta.items()}
                    | (own.meta_of(i) if own else {}),
                    source=str(path),
                )
            except ValueError as error:
                yield BadSample(key, str(error), str(path))

    return Source(
        samples(),
        classes,
        {"format": "npz", "source": str(source)},
        len(ids),
        target=own.target if own else CLASSES,
    )


# --- Names, labels and targets -------------------------------------------------------------------


def _text(arrays: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The arrays, with byte strings decoded."""
    decoded = {}
    for name, array in arrays.items():
        try:
            decoded[name] = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: {name}: bytes that are not UTF-8 ({error}); save it as text") from None
    return decoded


def _standard_names(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays, with those that have a meaning under their names of `NAMES`."""
    renamed = dict(arrays)
    for plain in NAMES:
        meant = [name for name in arrays if name.lower() in (plain, *ALIASES.get(plain, ()))]
        if plain not in arrays and len(meant) == 1:
            renamed[plain] = renamed.pop(meant[0])
    return renamed


def _column(array: np.ndarray) -> np.ndarray:
    """A column [U, 1] as [U]."""
    return array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array


def _per_utterance(arrays: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """Remove an array [U] from `arrays`, and return it."""
    array = arrays.pop(name, np.array(0))
    if array.ndim != 1:
        raise ValueError(f"{path}: {name} has shape {array.shape}; expected one value per utterance, [U]")
    return array


def _classes(label: np.ndarray, given: list[str], path: Path) -> tuple[list[str | None], list[str]]:
    """Label of each utterance (None where it has none), and the classes."""
    if label.dtype.kind not in "iuf" and not (label.dtype.kind == "b" and given):
        classes = given_classes(given) if given else found_classes(label, str(path))
        return label.tolist(), classes
    there = label if label.dtype.kind != "f" else label[~np.isnan(label)]
    if len(label) and not len(there):
        raise ValueError(f"{path}: none of the utterances has a label")
    not_whole = there[~np.isfinite(there) | (there != np.floor(there))]
    if len(not_whole):
        raise ValueError(
            f"{path}: label: {not_whole[0]}, while classes are whole numbers or names; cut scores "
            "into classes, or write labels as text"
        )
    if there.min(initial=0) < 0:
        raise ValueError(f"{path}: label: {there.min():g}, while labels count from 0")
    classes = class_names(given or None, int(there.max(initial=0)) + bool(len(there)), str(path))
    return [None if value != value else classes[int(value)] for value in label.tolist()], classes


def _own_target(
    arrays: dict[str, np.ndarray], kind: str, bounds: dict[str, Bounds], utterances: int, path: Path
) -> TypedTarget:
    """Remove the arrays of a target from `arrays`, and `target_names`, and return the target.

    Raises:
        ValueError: there is no such array, or it is neither [U] nor [U, K]; names that do not fit.
    """
    names = [str(name) for name in arrays.pop("target_names", np.array([])).reshape(-1)]
    columns: dict[str, np.ndarray] = {}
    ranges: dict[str, Bounds] = {}
    for name, bound in bounds.items():
        if name not in arrays:
            raise ValueError(
                f"{path}: no array {name!r}, which --target_columns names; it has {sorted(arrays)}"
            )
        array = arrays.pop(name)
        if array.ndim not in (1, 2) or len(array) != utterances:
            raise ValueError(
                f"{path}: {name} has shape {list(array.shape)}; a target is [{utterances}], one value per "
                f"utterance, or [{utterances}, K]"
            )
        own = {name: array} if array.ndim == 1 else dict(_named_columns(array, name, names, path))
        if twice := [each for each in own if each in columns or each in arrays]:
            raise ValueError(f"{path}: {twice[0]!r}, a column of {name}, is another array, too; rename one")
        columns |= own
        ranges |= dict.fromkeys(own, bound)
    if not utterances or not columns:
        raise ValueError(f"{path}: there are no values of {', '.join(bounds)}; the arrays are empty")
    return typed_target(kind, {name: array.tolist() for name, array in columns.items()}, ranges, str(path))


def _named_columns(
    array: np.ndarray, name: str, names: list[str], path: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """The columns of an array [U, K] with their names."""
    wide = array.shape[1]
    if names and (len(names) != wide or len(set(names)) != wide):
        raise ValueError(
            f"{path}: target_names are {names!s:.80}, but {name} has {wide} columns; give each one name"
        )
    return zip(names or [f"{name}_{i}" for i in range(wide)], array.T, strict=True)


def _plain(value: Any) -> Any:
    """A value of metadata, or a list of them; None for NaN, which is a missing number."""
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and value != value else value


# --- Features ------------------------------------------------------------------------------------


def _modalities(arrays: dict[str, np.ndarray]) -> list[str]:
    return [
        name
        for name, x in arrays.items()
        if f"{name}_offsets" in arrays
        or (x.ndim == 3 and x.shape[2] > 0)
        or (x.ndim == 2 and _lengths_name(arrays, name))
    ]


def _lengths_name(arrays: dict[str, np.ndarray], modality: str) -> str | None:
    """Name of the array with the numbers of steps of a modality."""
    known = {f"{modality}_{word}".lower() for word in LENGTHS}
    return next((name for name in arrays if name.lower() in known), None)


def _layout_arrays(arrays: dict[str, np.ndarray], modality: str) -> set[str | None]:
    return {f"{modality}_offsets", _lengths_name(arrays, modality)}


def _steps(arrays: dict[str, np.ndarray], name: str, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All steps of a modality [N, D], and begin and end of each utterance's steps in it, [U] each."""
    x, lengths = arrays[name], _lengths_name(arrays, name)
    steps = None if lengths is None else _whole(arrays[lengths], lengths, path)
    if f"{name}_offsets" in arrays:
        offsets = _offsets(x, arrays[f"{name}_offsets"], name, path)
        if steps is not None and not np.array_equal(np.diff(offsets), steps):
            raise ValueError(f"{path}: {lengths} contradict {name}_offsets; leave one of them out")
        return x, offsets[:-1], offsets[1:]
    if x.ndim == 2:
        assert steps is not None
        if steps.sum() != len(x) or steps.min(initial=0) < 0:
            raise ValueError(
                f"{path}: {lengths} add up to {steps.sum()}, but {name} {list(x.shape)} has {len(x)} steps"
            )
        ends = np.cumsum(steps)
        return x, ends - steps, ends
    first = np.arange(len(x)) * x.shape[1]
    if steps is None:
        steps = np.full(len(x), x.shape[1])
    bad = steps[(steps < 0) | (steps > x.shape[1])].tolist()
    if len(steps) != len(x) or bad:
        raise ValueError(
            f"{path}: {lengths} must be {len(x)} numbers from 0 to {x.shape[1]}, the steps of {name} "
            f"{list(x.shape)}; it has {len(steps)}{f', one of which is {bad[0]}' if bad else ''}"
        )
    # [U, T, D] viewed as [U * T, D], of which padding is left out.
    return x.reshape(-1, x.shape[-1]), first, first + steps


def _whole(array: np.ndarray, name: str, path: Path) -> np.ndarray:
    if array.ndim != 1 or array.dtype.kind not in "iuf" or not (array == np.floor(array)).all():
        raise ValueError(f"{path}: {name} is {array.dtype}, shape {array.shape}; expected integers [U]")
    return array.astype(np.int64)


def _offsets(x: np.ndarray, bounds: np.ndarray, name: str, path: Path) -> np.ndarray:
    """First step of each utterance, [U + 1]."""
    if x.ndim != 2:
        raise ValueError(f"{path}: {name} has shape {x.shape}, but with {name}_offsets it must be [sum T, D]")
    if bounds.ndim != 1 or bounds.dtype.kind not in "iu" or len(bounds) == 0:
        raise ValueError(f"{path}: {name}_offsets must be integers [U + 1]")
    if bounds[0] != 0 or bounds[-1] != len(x) or (np.diff(bounds.astype(np.int64)) < 0).any():
        raise ValueError(f"{path}: {name}_offsets must rise from 0 to {len(x)}, the steps of {name}")
    return bounds


def _check_padding(
    arrays: dict[str, np.ndarray], modalities: list[str], meta: dict[str, np.ndarray], path: Path
) -> None:
    """Refuse arrays that may describe padding but are not read so; log what may be padding, or a modality.

    Raises:
        ValueError: an array looks like the lengths or the mask of a modality that has no lengths.
    """
    padded = [name for name in modalities if arrays[name].ndim == 3 and not _lengths_name(arrays, name)]
    for modality in padded:
        x = arrays[modality]
        for name, array in meta.items():
            mask = ANY_MASK.fullmatch(name) and array.shape == x.shape[:2]
            if mask or (ANY_LENGTHS.fullmatch(name) and _may_be_lengths(array, x.shape[1])):
                lengths = f"{name}.sum(1), if it is 1 where there is a step," if mask else name
                raise ValueError(
                    f"{path}: {name} seems to tell which steps of {modality} {list(x.shape)} are padding; "
                    f"save {lengths} as {modality}_lengths [U], or, if it is metadata, under another name"
                )
        if x.shape[1] > 1 and (zeros := int((x[:, -1] == 0).all(axis=1).sum())):
            logger.warning(
                "%s: in %d of %d utterances the last step of %s is all zeros; if they are padded, add "
                "%s_lengths [U]",
                *(path, zeros, len(x), modality, modality),
            )
    for name, array in meta.items():
        if array.ndim == 2 and array.dtype.kind == "f":
            logger.warning(
                "%s: %s %s is kept as metadata; features of one step are [U, 1, D], of many [U, T, D]",
                *(path, name, list(array.shape)),
            )


def _may_be_lengths(array: np.ndarray, steps: int) -> bool:
    return bool(
        array.ndim == 1
        and array.dtype.kind in "iu"
        and array.min(initial=0) >= 0
        and array.max(initial=0) <= steps
        and array.min(initial=steps) < steps
    )
