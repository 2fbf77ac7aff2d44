"""The published code's data: `train.pt`, `val.pt` and `test.pt`,
each a dict of `audio_feats`, `video_feats` and `labels`.

`<modality>_feats` are [U, T, D] tensors, or lists of [T, D]; `labels` are [U] whole numbers, or [U, 1]. An
utterance whose label is NaN is a bad one. The second file may also be called `valid.pt` or `dev.pt`.

With another target than classes, `labels` are numbers [U], or [U, K]; NaN is a missing value. Their columns
are called "target", or target_0, target_1 and so on, unless they are given names:

    awtpn pack FOLDER data/vad --format reference --target regression --target_columns valence=1:5,arousal=1:5
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch

from shards.format.labels import label_name
from shards.format.schema import BadSample, Sample
from shards.format.split_names import meaning, renaming_message
from shards.format.targets import CLASSES
from shards.safe_io.expansion import check_expansion
from shards.safe_io.git_lfs import refuse_pointer
from shards.sources.base import Source, class_names, log_unused, logger
from shards.sources.reading.typed_targets import Bounds, TypedTarget, column_bounds, typed_target

SPLITS = ("train", "val", "test")
SUFFIX = "_feats"


def read(
    source: str | Path,
    labels: list[str] | None = None,
    target: Literal["classification", "regression", "multilabel"] = "classification",
    target_columns: list[str] | None = None,
) -> Source:
    """Read a folder of the published code's splits.

    Args:
        source: the folder of these files; one or two of them are enough.
        labels: class names in label order; default class_0, class_1 and so on.
        target: what `labels` hold: classification (classes), regression (values) or multilabel (several
            labels at once).
        target_columns: names of the columns of `labels`, each NAME or NAME=LOW:HIGH, such as valence=1:5.

    Raises:
        ValueError: no split there, a file that only unpickling could read, or one of another layout.
    """
    folder = Path(source)
    bounds = None
    if target_columns or target == "classification":  # else the columns have names of their own
        bounds = column_bounds(target_columns, target, str(folder))
    if labels and target != "classification":
        raise ValueError(f"{folder}: --labels names classes; name columns with --target_columns")
    paths = _split_files(folder)
    splits = {split: _load(path, target) for split, path in paths.items()}
    own = None if target == "classification" else _own_target(splits, target, bounds, str(folder))
    names: list[str] = []
    if own is None:
        there = [label for record in splits.values() for label in record["labels"] if label is not None]
        names = class_names(labels, max(there, default=-1) + 1, str(folder))
    return Source(
        samples=_samples(splits, paths, names, own),
        classes=names,
        provenance={"format": "reference", "source": str(source)},
        total=sum(len(record["labels"]) for record in splits.values()),
        target=own.target if own else CLASSES,
    )


def _own_target(
    splits: dict[str, dict[str, Any]], kind: str, bounds: dict[str, Bounds] | None, at: str
) -> TypedTarget:
    """The target of all splits, one after the other.

    Raises:
        ValueError: splits have different numbers of columns, or these are not as many as the names.
    """
    values = [row for record in splits.values() for row in record["labels"]]
    counts = sorted({len(row) for row in values})
    if len(counts) != 1 or counts[0] == 0:
        raise ValueError(f"{at}: labels have {' and '.join(map(str, counts)) or 'no'} columns; save [U, K]")
    if bounds is None:
        names = ["target"] if counts[0] == 1 else [f"target_{i}" for i in range(counts[0])]
        bounds = dict.fromkeys(names)
    if len(bounds) != counts[0]:
        raise ValueError(
            f"{at}: --target_columns names {len(bounds)} columns, but labels have {counts[0]}; name each one"
        )
    return typed_target(kind, dict(zip(bounds, zip(*values, strict=True), strict=True)), bounds, at)


def _split_files(folder: Path) -> dict[str, Path]:
    """The file of each split; other files are logged.

    Raises:
        ValueError: no split there, or two files that mean the same one.
    """
    files = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
    named: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for path in files:
        if path.suffix == ".pt" and meaning(path.stem) in named:
            named[meaning(path.stem)].append(path)
    for split, found in named.items():
        if len(found) > 1:
            raise ValueError(f"{folder}: {found[0].name} and {found[1].name} both mean {split!r}; remove one")
    paths = {split: found[0] for split, found in named.items() if found}
    if not paths:
        raise ValueError(f"{folder}: no train.pt, val.pt or test.pt in it; give the folder that holds them")
    if message := renaming_message({path.stem: split for split, path in paths.items()}, str(folder)):
        logger.warning("%s", message)
    log_unused([path.name for path in files if path not in paths.values()], str(folder), "files are")
    return paths


def _load(path: Path, target: str) -> dict[str, Any]:
    refuse_pointer(path)
    try:
        # Memory-mapped, so that a large file is read utterance by utterance; old torch formats cannot be.
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: not a file of plain tensors ({str(error).splitlines()[0]}); objects are never "
            "unpickled: save a dict of tensors with torch.save"
        ) from None
    if isinstance(record, dict) and (others := [name for name in record if not isinstance(name, str)]):
        raise ValueError(f"{path}: key {others[0]!r:.60} is no text; name every entry")
    names = [name for name in record if name.endswith(SUFFIX)] if isinstance(record, dict) else []
    if not names or "labels" not in record:
        raise ValueError(f"{path}: must be a dict of 'audio_feats', 'video_feats' and 'labels'")
    for name in (*names, "labels"):
        _check_utterances(record[name], f"{path}: {name}")
        _check_tensors(record[name], path.stat().st_size, f"{path}: {name}")
    log_unused([name for name in record if name not in (*names, "labels")], str(path), "keys are")
    labels = _label_tensor(record["labels"], path)
    record["labels"] = _labels(labels, path) if target == "classification" else _rows(labels, path)
    for name in names:
        if len(record[name]) != len(record["labels"]):
            raise ValueError(
                f"{path}: {name} has {len(record[name])} utterances, labels {len(record['labels'])}"
            )
    return record


def _check_utterances(values: Any, at: str) -> None:
    """Refuse values without one entry per utterance.

    Raises:
        ValueError: names the file and the entry.
    """
    if isinstance(values, torch.Tensor):
        kind = "nested tensor" if values.is_nested else "single number" if values.ndim == 0 else None
    else:
        kind = None if isinstance(values, list | tuple) else f"value of type {type(values).__name__}"
    if kind:
        raise ValueError(f"{at} is a {kind}; save a tensor, or a list, with one entry per utterance")


def _check_tensors(values: Any, file_bytes: int, at: str) -> None:
    """Refuse tensors far larger than the file, which repeat few values many times.

    Raises:
        ValueError: names the file and the entry.
    """
    for tensor in values if isinstance(values, list | tuple) else [values]:
        # Other kinds are refused where their utterances are read.
        if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_meta:
            check_expansion(tensor.numel() * tensor.element_size(), file_bytes, at)


def _label_tensor(labels: Any, path: Path) -> torch.Tensor:
    """The labels as a plain tensor.

    Raises:
        ValueError: they are not numbers, or a tensor of another kind.
    """
    try:
        found = torch.as_tensor(labels).cpu()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        message = str(error).partition("\n")[0]
        raise ValueError(f"{path}: labels must be integers from 0 on ({message})") from None
    if found.is_quantized:
        raise ValueError(f"{path}: labels are a quantized tensor; save labels.int_repr()")
    if found.layout != torch.strided:
        raise ValueError(f"{path}: labels are a sparse tensor; save labels.to_dense()")
    return found


def _rows(labels: torch.Tensor, path: Path) -> list[list[float]]:
    """The values of each utterance, U lists of K.

    Raises:
        ValueError: of another shape than [U] or [U, K], or complex.
    """
    if labels.ndim not in (1, 2) or labels.dtype.is_complex:
        raise ValueError(
            f"{path}: labels are {labels.dtype}, shape {list(labels.shape)}; expected numbers [U] or [U, K]"
        )
    return labels.reshape(len(labels), -1).tolist() if labels.numel() else [[] for _ in labels]


def _labels(found: torch.Tensor, path: Path) -> list[int | None]:
    """Label of each utterance; None for NaN.

    Raises:
        ValueError: of another shape, or not whole numbers from 0 on.
    """
    if found.ndim == 2 and found.shape[1] == 1:
        found = found.reshape(-1)
    if found.ndim != 1:
        raise ValueError(f"{path}: labels have shape {list(found.shape)}; expected one per utterance, [U]")
    values = [None if value != value else value for value in found.tolist()]
    there = [value for value in values if value is not None]
    if found.dtype.is_complex or not all(value >= 0 and value == value // 1 for value in there):
        raise ValueError(f"{path}: labels must be integers from 0 on")
    return [None if value is None else int(value) for value in values]


def _samples(
    splits: dict[str, dict[str, Any]], paths: dict[str, Path], classes: list[str], own: TypedTarget | None
) -> Iterator[Sample | BadSample]:
    places = count()  # of an utterance among those of all splits
    for split, record in splits.items():
        names = [name for name in record if name.endswith(SUFFIX)]
        for i, label in enumerate(record["labels"]):
            key, at, place = f"{split}-{i:06d}", str(paths[split]), next(places)
            try:
                named = None if own else label_name(None if label is None else classes[label], classes)
                values = own.meta_of(place) if own else {}
                features = {name.removesuffix(SUFFIX): _array(record[name][i], name) for name in names}
            except ValueError as error:
                yield BadSample(key, str(error), at)
                continue
            yield Sample(key, split, named, features, values, source=at)


def _array(tensor: Any, name: str) -> Any:
    """One utterance's features as a NumPy array.

    Raises:
        ValueError: not a plain tensor of numbers.
    """
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}; save a tensor [T, D] per utterance")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "meta" if tensor.is_meta else "sparse"
        raise ValueError(f"{name} is a {kind} tensor; save a dense one ({name}.to_dense())")
    tensor = tensor.detach().resolve_conj().resolve_neg()
    # NumPy has neither bfloat16 nor 8-bit floats.
    floating = tensor.dtype.is_floating_point and tensor.dtype not in (torch.float32, torch.float64)
    return (tensor.float() if floating and tensor.dtype != torch.float16 else tensor).numpy()
