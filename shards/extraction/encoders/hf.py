"""Hugging Face models as encoders: found, loaded without running anyone's code, and told apart.

Weights are safetensors; a repository that has only pickled ones is read by torch's restricted unpickler
(`weights_only`). Code of a repository is never run (`trust_remote_code` stays off).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from shards.safe_io.bounded_json import read_json
from shards.safe_io.versions import installed_version

DTYPES = ("float32", "bfloat16", "float16")
SETTINGS_FILES = ["config.json", "preprocessor_config.json", "processor_config.json"]
SAFE_WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
PICKLED_WEIGHTS = ["pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"]
# Weights that checkpoints may lack, since nothing here uses them.
UNUSED = ("masked_spec_embed", "pooler.")


def locate(spec: str, revision: str | None) -> tuple[Path, dict[str, Any]]:
    """The folder of a model, downloaded if need be, and what tells it from others.

    Args:
        spec: a local folder, or else a hub id.
        revision: branch, tag or commit of the hub.

    Returns:
        (folder, settings: "id"; the "sha256" over settings and weights, by file in alphabetical order, the
        same wherever a copy lies; and of the hub "revision", the commit, of a folder "path").

    Raises:
        ValueError: neither a folder nor on the hub (or in its cache, when offline), or no weights in it.
    """
    folder = Path(spec).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"{spec}: is a local folder, so revision={revision!r} means nothing; leave it out"
            )
        path = folder.resolve()
        return folder, {"id": path.name, "path": str(path), "sha256": _sha256(folder)}
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ValueError(f"{spec}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        got = Path(snapshot_download(spec, revision=revision, allow_patterns=SETTINGS_FILES + SAFE_WEIGHTS))
        if not _files(got, SAFE_WEIGHTS):
            got = Path(snapshot_download(spec, revision=got.name, allow_patterns=PICKLED_WEIGHTS))
    # Its errors have no other common base: no such repository, gated, offline, no network, a malformed id.
    except Exception as error:
        raise ValueError(
            f"{spec}: neither a folder here nor a built-in encoder, and the Hugging Face hub does not give "
            f"it ({_in_a_line(error)})"
        ) from None
    return got, {"id": spec, "revision": got.name, "sha256": _sha256(got)}


def model_type(folder: Path, known: dict[str, str], spec: str) -> str:
    """The type of the model in `folder`.

    Raises:
        ValueError: no configuration, or not one of the types in `known`.
    """
    path = folder / "config.json"
    try:
        settings = read_json(path)
    except FileNotFoundError:
        raise ValueError(
            f"{spec}: {path} is missing; a model's folder is what save_pretrained writes"
        ) from None
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from None
    found = settings.get("model_type") if isinstance(settings, dict) else None
    if found not in known:
        raise ValueError(
            f"{spec}: model type {found!r} is not one that can encode this: use {', '.join(sorted(known))}"
        )
    return str(found)


def load_model(folder: Path, architecture: str, spec: str, device: str, dtype: str, **changes: Any) -> Any:
    """The model of a class of transformers, ready to encode.

    Args:
        folder: where it is.
        architecture: name of the class.
        spec: for messages.
        device: where it is to run.
        dtype: one of `DTYPES`.
        changes: of its configuration.

    Raises:
        ValueError: weights missing or unfit for the configuration.
        ImportError: transformers does not import.
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
    safe = bool(_files(folder, SAFE_WEIGHTS))
    if not safe and not _files(folder, PICKLED_WEIGHTS):
        raise ValueError(f"{spec}: {folder / 'model.safetensors'} is missing, and so is pytorch_model.bin")
    try:
        with _telling_misfits(architecture):
            import transformers

            model, report = getattr(transformers, architecture).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=safe,
                weights_only=True,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                **changes,
            )
    except UnpicklingError:
        # Torch's own message advises to run it all the same.
        raise ValueError(
            f"{spec}: the pickled weights in {folder} are more than weights and were not read; "
            "take a revision with safetensors"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{spec}: {folder} cannot be loaded as {architecture} ({error})") from None
    # Transformers fills what is missing with random numbers, and only warns.
    missing = [name for name in sorted(report["missing_keys"]) if not name.startswith(UNUSED)]
    if missing:
        raise ValueError(
            f"{spec}: {folder} lacks {len(missing)} weights of {architecture} (first: {missing[0]}); "
            "it holds another model than its config.json says"
        )
    return model.eval().requires_grad_(False).to(device)


def load_processor(folder: Path, kind: str, spec: str) -> Any:
    """What prepares a model's input: `kind` is "AutoFeatureExtractor" (sound) or "AutoImageProcessor".

    Raises:
        ValueError: its settings are missing.
        ImportError: transformers does not import.
    """
    try:
        with _telling_misfits(kind):
            import transformers

            return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            raise ValueError(
                f"{spec}: {path} is missing; it tells how the model's input is prepared: save the model's "
                "processor beside it with save_pretrained"
            ) from None
        raise ValueError(f"{spec}: {path} is no {kind} ({error})") from None


@contextlib.contextmanager
def _telling_misfits(name: str) -> Iterator[None]:
    """Around what imports the class `name` of transformers, which does so on use and calls it missing.

    Raises:
        ImportError: it does not import; says why.
    """
    try:
        yield
    except (ImportError, RuntimeError, AttributeError) as error:
        if misfit := torchvision_misfit():
            raise ImportError(misfit) from None
        if not isinstance(error, ImportError):
            raise
        cause: BaseException = error
        while (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
        raise ImportError(
            f"{name} of transformers does not import ({_in_a_line(cause)}); install it again: "
            "pip install --upgrade transformers"
        ) from None


def torchvision_misfit() -> str | None:
    """Why a torchvision that is installed does not import; transformers imports it with many a model."""
    import torch

    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # an operator that is not there, an undefined symbol, a circular import, ...
        found = installed_version("torchvision") or "of no version"
        return (
            f"torchvision {found} does not fit torch {torch.__version__} ({_in_a_line(error)}); "
            "nothing here needs it: pip uninstall torchvision, or install both together from one index: "
            "pip install --force-reinstall torch torchvision"
        )
    return None


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def layer_number(layer: int, layers: int, spec: str) -> int:
    """A hidden layer in [0, layers]: 0 is the first layer's input, negative ones count from the last.

    Raises:
        ValueError: there is no such layer.
    """
    if not -layers - 1 <= layer <= layers:
        raise ValueError(f"{spec}: layer={layer}; the model has layers 0 (the first's input) to {layers}")
    return layer % (layers + 1)


def versions(processor: Any) -> dict[str, str]:
    """What features hang on in their last digits."""
    import torch
    import transformers

    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "processor": type(processor).__name__,
    }


def _files(folder: Path, patterns: list[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _sha256(folder: Path) -> str:
    weights = _files(folder, SAFE_WEIGHTS) or _files(folder, PICKLED_WEIGHTS)
    total = hashlib.sha256()
    for path in _files(folder, SETTINGS_FILES) + weights:
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
