"""The published code's data: a folder of `train.pt`, `val.pt`, `test.pt`.

Each is a dict of `<modality>_feats` ([U, T, D] tensors, or lists of [T, D]) and `labels` ([U]).
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from shards.expansion import check_expansion
from shards.lfs import refuse_pointer
from shards.schema import Sample
from shards.sources.source import Source, class_names

SPLITS = ("train", "val", "test")
SUFFIX = "_feats"


def read(source: str | Path, labels: list[str] | None = None) -> Source:
    """Read a folder of the published code's splits.

    Args:
        source: the folder; splits that are not there are left out.
        labels: class names; default "class_0" and so on.

    Raises:
        ValueError: no split there, a file that only unpickling could read, or one of another layout.
    """
    folder = Path(source)
    paths = {split: folder / f"{split}.pt" for split in SPLITS if (folder / f"{split}.pt").is_file()}
    if not paths:
        raise ValueError(f"{folder}: no train.pt, val.pt or test.pt in it; give the folder that holds them")
    splits = {split: _load(path) for split, path in paths.items()}
    highest = max(int(max(record["labels"], default=-1)) for record in splits.values())
    names = class_names(labels, highest + 1, str(folder))
    return Source(
        samples=_samples(splits, paths, names),
        classes=names,
        provenance={"format": "reference", "source": str(source)},
        total=sum(len(record["labels"]) for record in splits.values()),
    )


def _load(path: Path) -> dict[str, Any]:
    refuse_pointer(path)
    try:
        # Mapped, so that a large file is read utterance by utterance; files of old torch versions cannot be.
        record = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: not a file of plain tensors ({str(error).splitlines()[0]}); objects are never "
            "unpickled: save a dict of tensors with torch.save"
        ) from None
    names = [name for name in record if name.endswith(SUFFIX)] if isinstance(record, dict) else []
    if not names or "labels" not in record:
        raise ValueError(f"{path}: must be a dict of 'audio_feats', 'video_feats' and 'labels'")
    for name in (*names, "labels"):
        _check_tensors(record[name], path.stat().st_size, f"{path}: {name}")
    labels = record["labels"]
    record["labels"] = labels.tolist() if isinstance(labels, torch.Tensor) else list(labels)
    for name in names:
        if len(record[name]) != len(record["labels"]):
            raise ValueError(
                f"{path}: {name} has {len(record[name])} utterances, labels {len(record['labels'])}"
            )
    if not all(isinstance(label, int) and label >= 0 for label in record["labels"]):
        raise ValueError(f"{path}: labels must be integers from 0 on")
    return record


def _check_tensors(values: Any, file_bytes: int, at: str) -> None:
    """Refuse what NumPy cannot take, and tensors that repeat few values of the file many times.

    Raises:
        ValueError: names the file and the entry.
    """
    for tensor in values if isinstance(values, list | tuple) else [values]:
        if not isinstance(tensor, torch.Tensor):
            continue
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = str(tensor.layout).removeprefix("torch.") if tensor.device.type == "cpu" else tensor.device
            raise ValueError(
                f"{at}: a tensor of the kind {kind}; features are plain dense tensors: save tensor.to_dense()"
            )
        check_expansion(tensor.numel() * tensor.element_size(), file_bytes, at)


def _samples(
    splits: dict[str, dict[str, Any]], paths: dict[str, Path], classes: list[str]
) -> Iterator[Sample]:
    for split, record in splits.items():
        names = [name for name in record if name.endswith(SUFFIX)]
        for i, label in enumerate(record["labels"]):
            features = {name.removesuffix(SUFFIX): _array(record[name][i]) for name in names}
            yield Sample(f"{split}-{i:06d}", split, classes[label], features, source=str(paths[split]))


def _array(tensor: torch.Tensor) -> Any:
    # NumPy has no bfloat16.
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
