"""The files of a model: weights, card and checksums; read only as far as they are what they say.

A checkpoint has the checksums of its files in `checkpoint.json`, a model to share in `checksums.json`. A
model may come from anywhere: what its card asks for is compared with the weights before memory is taken.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from awtpn.model.hub import locate
from shards.format.schema import PLAIN_NAME, SHA256
from shards.safe_io.bounded_json import read_json
from shards.safe_io.git_lfs import refuse_pointer
from shards.safe_io.json_text import json_text

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "config.json"
README_FILE = "README.md"
CHECKSUMS_FILE = "checksums.json"
# Of a checkpoint besides: Adam's moments, and the position, with the fingerprints of FILES.
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "checkpoint.json"
FILES = (WEIGHTS_FILE, OPTIMIZER_FILE, CARD_FILE)
STEP = re.compile(r"step-(\d{8,15})")

# Widths and counts of a network: beyond any, and products of them do not overflow.
LARGEST = 1 << 24


# --- Checksums -----------------------------------------------------------------------------------


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as `checkpoint.json` and `checksums.json` hold them."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write `checksums.json` of these files of a folder. The README is not among them: people edit it."""
    files = {name: fingerprint(folder / name) for name in names}
    (folder / CHECKSUMS_FILE).write_text(json_text({"format_version": 1, "files": files}, indent=1) + "\n")


def check_checksums(folder: Path, names: Iterable[str]) -> None:
    """Compare files of a model with its `checksums.json`; early exports have none.

    Raises:
        ValueError: one is not as it was exported; names it.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return
    record = read_json(path)
    files = parse_files(record.get("files") if isinstance(record, dict) else None, str(path))
    if altered := find_altered(folder, files, names, "exported"):
        raise ValueError(f"{altered}; export it again, or, if you changed it yourself, remove {path}")


def parse_files(record: Any, at: str) -> dict[str, dict[str, Any]]:
    """The size and SHA-256 of files, by name.

    Raises:
        ValueError: a name that could lead out of the folder, or what is no size or hash.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{at}: files are missing")
    for name, entry in record.items():
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"{at}: files: {name!r:.60} is not a plain file name")
        size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        whole = isinstance(size, int) and not isinstance(size, bool) and size >= 0
        if not whole or not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise ValueError(f"{at}: files.{name}: no size and hash of 64 hexadecimal digits")
    return record


def find_altered(
    folder: Path, files: Mapping[str, Mapping[str, Any]], names: Iterable[str], was: str
) -> str | None:
    """What is wrong with the first of `names` that is missing or differs from `files`; None if nothing is."""
    for name in names:
        if name not in files:
            return f"{folder}: {name} has no checksum"
        if not (folder / name).is_file():
            return f"{folder} is not whole: {name} is missing"
        if fingerprint(folder / name) != {key: files[name][key] for key in ("bytes", "sha256")}:
            return f"{folder / name} is not the file that was {was}: its size or sha256 differs"
    return None


# --- Card and weights ----------------------------------------------------------------------------


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a model, whose sizes and names can be relied on.

    Raises:
        ValueError: it is of no model of this format, or a field is missing or impossible. One line.
    """
    path = folder / CARD_FILE
    card = read_json(path)
    if not isinstance(card, dict) or card.get("format") != "awtpn" or card.get("format_version") != 1:
        raise ValueError(f"{path} is not an AWTPN model of format version 1")
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
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"{path}: classes must be distinct names, at least one, not {classes!r:.60}")
    if not isinstance(card.get("learnable_prototypes"), bool):
        raise ValueError(f"{path}: learnable_prototypes must be true or false")
    if not isinstance(card.get("provenance") or {}, dict):
        raise ValueError(f"{path}: provenance must be a mapping")
    return card


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a `.safetensors` file, of which no more than the header is read.

    Raises:
        ValueError: it is no such file, or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file, on the CPU.

    Raises:
        ValueError: it is no such file, or damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: no safetensors file, or a damaged one ({' '.join(str(error).split()):.200})")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


# --- Checkpoints and runs ------------------------------------------------------------------------


def identity(folder: Path) -> dict[str, Any] | None:
    """Which weights a checkpoint holds: step and sha256 of the weights; None where nothing records them."""
    try:
        state = read_json(folder / STATE_FILE)
        return {"step": state["position"]["step"], "sha256": state["files"][WEIGHTS_FILE]["sha256"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def model_folder(run_dir: Path) -> Path | None:
    """The checkpoint that a run is judged by: its best, or else its latest one; None where it has neither."""
    root = run_dir / "checkpoints"
    found = ((root / name).resolve() for name in ("best", "latest") if (root / name / CARD_FILE).is_file())
    return next(found, None)


def step_folders(root: Path) -> list[Path]:
    """The folders of checkpoints, by their step; what others put beside them is not ours to touch."""
    found = [folder for folder in root.glob("step-*") if STEP.fullmatch(folder.name) and folder.is_dir()]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))


def find_corruption(folder: Path, names: Sequence[str] = FILES) -> str | None:
    """Why the files of a checkpoint cannot be used, naming one; None if all are whole and as they were saved.

    With `names`, only these files are looked at: evaluating takes no moments.
    """
    path = folder / STATE_FILE
    if not path.exists() and (other := _other_than_checkpoint(folder)):
        return other
    try:
        files = parse_files(read_state(folder).get("files"), path.name)
    except (OSError, ValueError) as error:
        told = str(error).removeprefix(f"{path}: ")
        return f"{folder} is no whole checkpoint: {path.name} cannot be read ({told})"
    for name in names:
        if name not in files or not (folder / name).is_file():
            return f"{folder} is no whole checkpoint: {name} is missing"
    return find_altered(folder, files, names, "saved")


def _other_than_checkpoint(folder: Path) -> str | None:
    """What to do with a folder that is an export, or a run, and no checkpoint; None where it is neither."""
    has = [(folder / name).is_file() for name in FILES]
    if has == [name != OPTIMIZER_FILE for name in FILES]:
        return (
            f"{folder} is an export, which has no optimizer state to go on with: start from its weights with "
            f"--run.init_from {quote(str(folder))}"
        )
    if steps := step_folders(folder / "checkpoints"):
        return f"{folder} is a run and no checkpoint: name one of its checkpoints, such as {steps[-1]}"
    return None


def read_state(folder: Path) -> dict[str, Any]:
    state = read_json(folder / STATE_FILE)
    if not isinstance(state, dict) or state.get("format_version") != 1:
        raise ValueError(f"{folder / STATE_FILE}: not of a checkpoint of format version 1")
    return state


def newest_intact(
    root: Path,
    all_but: Path | None = None,
    find_problem: Callable[[Path], str | None] = find_corruption,
) -> Path | None:
    """The newest checkpoint in `root` without a problem, `all_but` excepted; None where there is none."""
    others = (other for other in reversed(step_folders(root)) if other != all_but)
    return next((other for other in others if find_problem(other) is None), None)


def find_model(path: Path) -> Path:
    """The model that `path` means: an export or checkpoint folder itself, or a run's best checkpoint.

    A path that does not exist but looks like "user/model" is fetched from the Hugging Face Hub.

    Raises:
        ValueError: there is none; says what was looked for. Or it is not as it was saved or exported.
    """
    path = locate(path, (CARD_FILE, WEIGHTS_FILE), optional=(CHECKSUMS_FILE,))
    candidates = [path, path / "checkpoints" / "best", path / "checkpoints" / "latest"]
    for folder in candidates:
        if not (folder / CARD_FILE).is_file():
            continue
        folder = folder.resolve()
        refuse_pointer(folder / WEIGHTS_FILE)
        if (folder / STATE_FILE).exists() and (wrong := find_corruption(folder, (WEIGHTS_FILE, CARD_FILE))):
            sound = newest_intact(folder.parent, all_but=folder)
            raise ValueError(wrong + (f"; {sound} is whole: name that instead" if sound else ""))
        check_checksums(folder, (WEIGHTS_FILE, CARD_FILE))
        return folder
    raise ValueError(
        f"{path} is no run, checkpoint or export: none of {', '.join(map(str, candidates))} has {CARD_FILE}"
    )
