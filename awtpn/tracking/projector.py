"""Utterances and prototypes in TensorBoard's projector: vectors with the labels to colour them by.

Written beside the event files, once per name, and replaced from then on. SummaryWriter.add_embedding would
leave a folder per step, print every number in Python, and forget what an interrupted run had listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from awtpn.run.atomic_write import write_atomically
from awtpn.tracking.snapshot import Embeddings
from shards.safe_io.printable import printable

FOLDER = "projector"
CONFIG_FILE = "projector_config.pbtxt"  # the name that the projector looks for
# `shown_as` is for colouring: prototypes of all classes have a colour of their own among the classes'.
COLUMNS = ("key", "label", "predicted", "kind", "shown_as")


def write_projector(board: Path, name: str, embeddings: Embeddings, classes: Sequence[str]) -> None:
    """Show `embeddings` under `name`: utterances, and among them the prototypes.

    Args:
        board: the folder of the event files.
    """
    folder = board / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    per_class = len(embeddings.prototypes) // len(classes)
    rows = [COLUMNS]
    for key, label, predicted in zip(embeddings.key, embeddings.label, embeddings.predicted, strict=True):
        rows.append((key, classes[label], classes[predicted], "utterance", classes[label]))
    for i in range(len(embeddings.prototypes)):
        label = classes[i // per_class]
        rows.append((f"prototype {i % per_class + 1} of {label}", label, label, "prototype", "PROTOTYPES"))
    vectors = np.nan_to_num(np.concatenate([embeddings.vectors, embeddings.prototypes]).astype("<f4"))
    write_atomically(folder / f"{name}.tsv", "".join(_line(row) for row in rows))
    write_atomically(folder / f"{name}.bytes", vectors.tobytes())
    _list(board, name, vectors.shape)


def _line(row: Iterable[str]) -> str:
    return "\t".join(printable(" ".join(cell.split())) for cell in row) + "\n"


def _list(board: Path, name: str, shape: tuple[int, ...]) -> None:
    """Name the vectors in the projector's configuration, beside those of other names."""
    path, config = board / CONFIG_FILE, ProjectorConfig()
    if path.exists():
        text_format.Parse(path.read_text(), config)
    others = [entry for entry in config.embeddings if entry.tensor_name != name]
    del config.embeddings[:]
    config.embeddings.extend(others)
    config.embeddings.add(
        tensor_name=name,
        tensor_shape=shape,
        tensor_path=f"{FOLDER}/{name}.bytes",
        metadata_path=f"{FOLDER}/{name}.tsv",
    )
    write_atomically(path, text_format.MessageToString(config))
