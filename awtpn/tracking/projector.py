"""Utterances and prototypes for TensorBoard's projector: vectors, and labels to color them by.

The files are beside the event files, one pair per name, and are replaced each time. We don't use
SummaryWriter.add_embedding: it makes a folder per step, formats every number in Python, and after a resume
drops what the interrupted run had listed.
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
# Color by `shown_as`: each class, set of labels or rounded value has a color, and all prototypes have one.
COLUMNS = ("key", "label", "predicted", "kind", "shown_as")


def write_projector(events: Path, name: str, embeddings: Embeddings, states: Sequence[str]) -> None:
    """Write utterances and prototypes of `embeddings`, to be shown under `name`.

    Args:
        events: the folder of the event files.
        states: what the prototypes stand for: see `Task.states`.
    """
    folder = events / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    per_state = len(embeddings.prototypes) // len(states)
    rows = [COLUMNS]
    for key, label, predicted, color in zip(
        embeddings.key, embeddings.label, embeddings.predicted, embeddings.shown_as, strict=True
    ):
        rows.append((key, label, predicted, "utterance", color))
    for i in range(len(embeddings.prototypes)):
        state = states[i // per_state]
        rows.append((f"prototype {i % per_state + 1} of {state}", state, state, "prototype", "PROTOTYPES"))
    vectors = np.nan_to_num(np.concatenate([embeddings.vectors, embeddings.prototypes]).astype("<f4"))
    write_atomically(folder / f"{name}.tsv", "".join(_line(row) for row in rows))
    write_atomically(folder / f"{name}.bytes", vectors.tobytes())
    _register(events, name, vectors.shape)


def _line(row: Iterable[str]) -> str:
    return "\t".join(printable(" ".join(cell.split())) for cell in row) + "\n"


def _register(events: Path, name: str, shape: tuple[int, ...]) -> None:
    """Add the vectors to the projector's configuration, and keep those of other names."""
    path, config = events / CONFIG_FILE, ProjectorConfig()
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
