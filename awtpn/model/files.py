"""The files of a model: weights, card and checksums. Read them and check that they are intact.

A checkpoint keeps the checksums of its files in `checkpoint.json`, an export in `checksums.json`. A model may
come from an untrusted source, so every field is checked before it is used.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from awtpn.model.encoders.card import ENCODER_FILES, folder_of, parse_records
from awtpn.model.sharing.hub import locate
from awtpn.model.task import task_of_card
from shards.format.recording import KIND_OF
from shards.format.schema import PLAIN_NAME, SHA256
from shards.safe_io.bounded_json import read_json
from shards.safe_io.git_lfs import refuse_pointer
from shards.safe_io.json_text import json_text

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "config.json"
# 1 has a list of modalities and keys such as alpha_audio; 2 a map from modalities to their settings.
CARD_VERSION = 2
README_FILE = "README.md"
CHECKSUMS_FILE = "checksums.json"
# A checkpoint also has the optimizer's state (Adam's moments; with averaged weights also those that training
# goes on with), and a state: the position in training, and the checksums of FILES.
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "checkpoint.json"
FILES = (WEIGHTS_FILE, OPTIMIZER_FILE, CARD_FILE)
STEP = re.compile(r"step-(\d{8,15})")

# Upper limit of widths and counts in a card. Products of two of them do not overflow.
LARGEST = 1 << 24
# Upper limit of the labels, dimensions or classes of a task.
MOST_NAMES = 1 << 16


# --- Checksums -----------------------------------------------------------------------------------


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as `checkpoint.json` and `checksums.json` hold them."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write `checksums.json` for these files of a folder. Leave the README out: users edit it."""
    files = {name: fingerprint(folder / name) for name in names}
    (folder / CHECKSUMS_FILE).write_text(json_text({"format_version": 1, "files": files}, indent=1) + "\n")


def check_checksums(folder: Path, names: Iterable[str]) -> None:
    """Compare files of a model with its `checksums.json`. Exports of early versions have none.

    Raises:
        ValueError: a file differs; names it.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return
    record = read_json(path)
    files = parse_files(record.get("files") if isinstance(record, dict) else None, str(path))
    if altered := find_altered(folder, files, names, "exported"):
        raise ValueError(f"{altered}; export the model again, or, if you changed it yourself, remove {path}")


def parse_files(record: Any, at: str) -> dict[str, dict[str, Any]]:
    """Check a record of sizes and SHA-256 hashes by file name, and return it.

    Raises:
        ValueError: a name could point outside the folder, or a size or hash is malformed; begins with `at`.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{at}: the field files is missing")
    for name, entry in record.items():
        if not PLAIN_NAME.fullmatch(name.removeprefix(encoder_folder(name))):
            raise ValueError(f"{at}: files: {name!r:.60} is not a plain file name")
        size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        whole = isinstance(size, int) and not isinstance(size, bool) and size >= 0
        if not whole or not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise ValueError(f"{at}: files.{name} has no size, or no hash of 64 hexadecimal digits")
    return record


def encoder_folder(name: str) -> str:
    """How the name of a file begins that belongs to an encoder in an export: "encoders/audio/"; else ""."""
    return next((start for m in KIND_OF if name.startswith(start := f"{folder_of(m)}/")), "")


def find_altered(
    folder: Path, files: Mapping[str, Mapping[str, Any]], names: Iterable[str], action: str
) -> str | None:
    """Compare files of a folder with their recorded sizes and hashes.

    Args:
        folder: that holds the files.
        files: of `parse_files`.
        names: of the files to compare.
        action: how they were written, for the message: "saved" or "exported".

    Returns:
        What is wrong with the first file that is missing or differs; None if all match.
    """
    for name in names:
        if name not in files:
            return f"{folder}: {name} has no checksum"
        if not (folder / name).is_file():
            return f"{folder} is incomplete: {name} is missing"
        if fingerprint(folder / name) != {key: files[name][key] for key in ("bytes", "sha256")}:
            return f"{folder / name} is not the file that was {action}: its size or sha256 differs"
    return None


# --- Card and weights ----------------------------------------------------------------------------


def read_card(folder: Path) -> dict[str, Any]:
    """Read a model's card and check its sizes and names.

    Raises:
        ValueError: it has another format, or a field is missing or out of range. One line.
    """
    path = folder / CARD_FILE
    card = read_json(path)
    if not isinstance(card, dict) or card.get("format") != "awtpn":
        raise ValueError(f"{path} is not an AWTPN model")
    if (version := card.get("format_version")) not in range(1, CARD_VERSION + 1):
        raise ValueError(
            f"{path} is an AWTPN model of format version {version!r:.20}; this code knows those up to "
            f"{CARD_VERSION}: install a newer one"
        )
    dims, classes = card.get("feature_dims"), card.get("classes")
    if not isinstance(card.get("model"), dict):
        raise ValueError(f"{path}: model must be a mapping of settings")
    for name in ("shared_dim", "prototypes_per_class"):
        if name in card["model"] and not _is_size(card["model"][name]):
            raise ValueError(f"{path}: model.{name} cannot be {card['model'][name]!r:.60}")
    if not isinstance(dims, dict) or not dims or not all(map(_is_size, dims.values())):
        raise ValueError(f"{path}: feature_dims must be features per step by modality, not {dims!r:.60}")
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise ValueError(f"{path}: classes must be a list of names, not {classes!r:.60}")
    if (not classes and card.get("task") is None) or len(set(classes)) < len(classes):
        raise ValueError(f"{path}: classes must be distinct names, at least one, not {classes!r:.60}")
    _check_task(card, path)
    if not isinstance(card.get("learnable_prototypes"), bool):
        raise ValueError(f"{path}: learnable_prototypes must be true or false")
    if not isinstance(card.get("provenance") or {}, dict):
        raise ValueError(f"{path}: provenance must be a mapping")
    try:
        encoders = parse_records(card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if unknown := [name for name in encoders if name not in dims]:
        raise ValueError(f"{path}: encoders has {unknown[0]}, which feature_dims lacks")
    return card


def files_of_encoders(card: Mapping[str, Any]) -> list[str]:
    """The names of the files, in the folder of a card, of encoders that an export holds; else []."""
    folders = [record.folder for record in parse_records(card).values() if record.folder]
    return [f"{folder}/{name}" for folder in folders for name in ENCODER_FILES]


def _check_task(card: Mapping[str, Any], path: Path) -> None:
    """Check the task of a card; without one it is to tell the classes apart.

    Raises:
        ValueError: it is not a task, or `classes` are not its names.
    """
    record = card.get("task")
    if record is None:
        return
    if not isinstance(record, dict) or not {"type", "names"} <= record.keys():
        raise ValueError(f"{path}: task must be a mapping with a type and names")
    # Before each of them is looked at, which takes microseconds.
    for name in ("names", "ranges"):
        if isinstance(record.get(name), list) and len(record[name]) > MOST_NAMES:
            raise ValueError(
                f"{path}: task.{name} has {len(record[name])} entries; at most {MOST_NAMES} are read"
            )
    try:
        task = task_of_card(card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not all(task.names):
        raise ValueError(f"{path}: task.names must not be empty")
    if card["classes"] != (task.names if task.type == "classification" else []):
        raise ValueError(f"{path}: classes and the names of the task differ")


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a `.safetensors` file; reads only its header.

    Raises:
        ValueError: it is not such a file, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from None


def read_weights(path: Path, ending: str = "") -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file whose names end with `ending`, on the CPU.

    Raises:
        ValueError: it is not such a file, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys() if name.endswith(ending)}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged or not a safetensors file ({' '.join(str(error).split()):.200})")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


# --- Checkpoints and runs ------------------------------------------------------------------------


def identity(folder: Path) -> dict[str, Any] | None:
    """Which weights a checkpoint holds: their step and sha256; None if that is not recorded."""
    try:
        state = read_json(folder / STATE_FILE)
        return {"step": state["position"]["step"], "sha256": state["files"][WEIGHTS_FILE]["sha256"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_folder(run_dir: Path) -> Path | None:
    """A run's best checkpoint, or else its latest one; None if it has neither."""
    root = run_dir / "checkpoints"
    found = ((root / name).resolve() for name in ("best", "latest") if (root / name / CARD_FILE).is_file())
    return next(found, None)


def step_folders(root: Path) -> list[Path]:
    """The folders of checkpoints in `root`, in order of their steps; ignores anything else there."""
    found = [folder for folder in root.glob("step-*") if STEP.fullmatch(folder.name) and folder.is_dir()]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))


def find_corruption(folder: Path, names: Sequence[str] = FILES) -> str | None:
    """Why a checkpoint cannot be used, naming the file; None if all files are as they were saved.

    Args:
        folder: of the checkpoint.
        names: the files to check; evaluating, for example, needs no Adam moments.
    """
    path = folder / STATE_FILE
    if not path.exists() and (hint := _hint_export_or_run(folder)):
        return hint
    try:
        files = parse_files(read_state(folder).get("files"), path.name)
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        return f"{folder} is not a complete checkpoint: {path.name} cannot be read ({reason})"
    for name in names:
        if name not in files or not (folder / name).is_file():
            return f"{folder} is not a complete checkpoint: {name} is missing"
    return find_altered(folder, files, names, "saved")


def _hint_export_or_run(folder: Path) -> str | None:
    """What to do if `folder` is an export or a run instead of a checkpoint; None if it is neither."""
    present = [(folder / name).is_file() for name in FILES]
    if present == [name != OPTIMIZER_FILE for name in FILES]:
        return (
            f"{folder} is an export, which has no optimizer state to resume: start from its weights with "
            f"--run.init_from {quote(str(folder))}"
        )
    if steps := step_folders(folder / "checkpoints"):
        return f"{folder} is a run, not a checkpoint: name one of its checkpoints, such as {steps[-1]}"
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's `checkpoint.json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON, or of another format version.
    """
    state = read_json(folder / STATE_FILE)
    if not isinstance(state, dict) or state.get("format_version") != 1:
        raise ValueError(f"{folder / STATE_FILE}: not a checkpoint of format version 1")
    return state


def newest_intact(
    root: Path,
    exclude: Path | None = None,
    find_problem: Callable[[Path], str | None] = find_corruption,
) -> Path | None:
    """The newest checkpoint in `root`, except `exclude`, in which `find_problem` finds none; else None."""
    others = (other for other in reversed(step_folders(root)) if other != exclude)
    return next((other for other in others if find_problem(other) is None), None)


def find_model(path: Path) -> Path:
    """The folder of the model at `path`: an export or checkpoint itself, or a run's best checkpoint.

    If `path` does not exist and has the form "user/model", download it from the Hugging Face Hub.

    Raises:
        ValueError: there is no model (says where it was searched), or a file differs from its checksum.
    """
    path = locate(path, (CARD_FILE, WEIGHTS_FILE), optional=(CHECKSUMS_FILE,))
    candidates = [path, path / "checkpoints" / "best", path / "checkpoints" / "latest"]
    for folder in candidates:
        if not (folder / CARD_FILE).is_file():
            continue
        folder = folder.resolve()
        refuse_pointer(folder / WEIGHTS_FILE)
        if (folder / STATE_FILE).exists() and (wrong := find_corruption(folder, (WEIGHTS_FILE, CARD_FILE))):
            intact = newest_intact(folder.parent, exclude=folder)
            raise ValueError(wrong + (f"; {intact} is intact: name that instead" if intact else ""))
        check_checksums(folder, (WEIGHTS_FILE, CARD_FILE))
        return folder
    raise ValueError(
        f"{path} is not a run, checkpoint or export: none of "
        f"{', '.join(map(str, candidates))} has {CARD_FILE}"
    )
