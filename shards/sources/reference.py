"""The published code's data: `train.pt`, `val.pt` and `test.pt`,
each a dict of `audio_feats`, `video_feats` and `labels`.

`<modality>_feats` are [U, T, D] tensors, or lists of [T, D]; `labels` are [U] whole numbers, or [U, 1]. An
utterance whose label is NaN is a bad one. The second file may also be called `valid.pt` or `dev.pt`.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from shards.format.labels import label_name
from shards.format.schema import BadSample, Sample
from shards.format.split_names import meaning, renaming_message
from shards.safe_io.expansion import check_expansion
from shards.safe_io.git_lfs import refuse_pointer
from shards.sources.base import Source, class_names, log_unused, logger

SPLITS = ("train", "val", "test")
SUFFIX = "_feats"


def read(source: str | Path, labels: list[str] | None = None) -> Source:
    """Read a folder of the published code's splits.

    Args:
        source: the folder of these files; one or two of them are enough.
        labels: class names in label order; default class_0, class_1 and so on.

    Raises:
        ValueError: no split there, a file that only unpickling could read, or one of another layout.
    """
    folder = Path(source)
    paths = _split_files(folder)
    splits = {split: _load(path) for split, path in paths.items()}
    there = [label for record in splits.values() for label in record["labels"] if label is not None]
    highest = max(there, default=-1)
    names = class_names(labels, highest + 1, str(folder))
    return Source(
        samples=_samples(splits, paths, names),
        classes=names,
        provenance={"format": "reference", "source": str(source)},
        total=sum(len(record["labels"]) for record in splits.values()),
    )


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


def _load(path: Path) -> dict[str, Any]:
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
    record["labels"] = _labels(record["labels"], path)
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


def _labels(labels: Any, path: Path) -> list[int | None]:
    """Label of each utterance; None for NaN.

    Raises:
        ValueError: of another shape, or not whole numbers from 0 on.
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
    splits: dict[str, dict[str, Any]], paths: dict[str, Path], classes: list[str]
) -> Iterator[Sample | BadSample]:
    for split, record in splits.items():
        names = [name for name in record if name.endswith(SUFFIX)]
        for i, label in enumerate(record["labels"]):
            key, at = f"{split}-{i:06d}", str(paths[split])
            try:
                named = label_name(None if label is None else classes[label], classes)
                features = {name.removesuffix(SUFFIX): _array(record[name][i], name) for name in names}
            except ValueError as error:
                yield BadSample(key, str(error), at)
                continue
            yield Sample(key, split, named, features, source=at)


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
