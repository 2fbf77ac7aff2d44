"""Hugging Face models: located, identified by a hash, and loaded without running code of others.

Weights are safetensors; a repository that has only pickled ones is read by torch's restricted unpickler
(`weights_only`). Code of a repository is never run (`trust_remote_code` stays off).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from shards.safe_io.bounded_json import read_json
from shards.safe_io.versions import installed_version

DTYPES = ("float32", "bfloat16", "float16")
SETTINGS_FILES = ["config.json", "preprocessor_config.json", "processor_config.json"]
# Of models of text only: the hashes of other models in recorded feature spaces are without them.
VOCABULARIES = [
    *("tokenizer.json", "vocab.txt", "vocab.json"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model"),
]
TOKENIZER_FILES = [
    *VOCABULARIES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
]
SAFE_WEIGHTS = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
README = "README.md"  # says the license; no feature depends on it
PICKLED_WEIGHTS = ["pytorch_model.bin", "pytorch_model-*-of-*.bin", "pytorch_model.bin.index.json"]
# Weights that checkpoints may lack: encoders do not use them.
UNUSED = ("masked_spec_embed", "pooler.")


@dataclass(frozen=True)
class LocatedModel:
    """A Hugging Face model on the local disk.

    Attributes:
        spec: its hub id or folder, as the user wrote it.
        folder: where its files are.
        model_type: of its `config.json`, such as "wav2vec2".
        origin: for an encoder's settings: "id"; "sha256" over its settings (of text, its tokenizer too) and
            weights, by file in alphabetical order, the same for every copy; "revision" (the commit) of the
            hub, or "path" of a folder.
    """

    spec: str
    folder: Path
    model_type: str
    origin: dict[str, Any]


def locate(spec: str, revision: str | None, modality: str) -> LocatedModel:
    """Find a model, and download it if it is on the hub.

    Args:
        spec: a local folder, or else a hub id.
        revision: branch, tag or commit of the hub.
        modality: that it encodes; of "text", the tokenizer's files belong to the model.

    Raises:
        ValueError: neither a folder nor on the hub (or in its cache, when offline), or no config.json in it.
    """
    settings = SETTINGS_FILES + (TOKENIZER_FILES if modality == "text" else [])
    folder, origin = _folder_of(spec, revision, settings)
    sha256 = _sha256(folder, settings)
    return LocatedModel(spec, folder, _model_type(folder, spec), origin | {"sha256": sha256})


def locate_settings(spec: str, revision: str | None) -> LocatedModel:
    """Find a model's settings; of a model on the hub no weights are downloaded, and there is no hash.

    Args and raises: as of `locate`.
    """
    folder, origin = _folder_of(spec, revision, SETTINGS_FILES, weights=False)
    return LocatedModel(spec, folder, _model_type(folder, spec), origin)


def _folder_of(
    spec: str, revision: str | None, settings: list[str], weights: bool = True
) -> tuple[Path, dict[str, Any]]:
    """Folder and origin of a model, without its hash."""
    folder = Path(spec).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"{spec}: is a local folder, so revision={revision!r} means nothing; leave it out"
            )
        path = folder.resolve()
        return folder, {"id": path.name, "path": str(path)}
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ValueError(f"{spec}: no such folder")
    from huggingface_hub import snapshot_download

    try:
        wanted = [*settings, README] + (SAFE_WEIGHTS if weights else [])
        got = Path(snapshot_download(spec, revision=revision, allow_patterns=wanted))
        if weights and not _files(got, SAFE_WEIGHTS):
            got = Path(snapshot_download(spec, revision=got.name, allow_patterns=PICKLED_WEIGHTS))
    # Its errors have no other common base: no such repository, gated, offline, no network, a malformed id.
    except Exception as error:
        raise ValueError(
            f"{spec}: neither a folder here nor a built-in encoder, and the Hugging Face hub does not "
            f"provide it ({_one_line(error)})"
        ) from None
    return got, {"id": spec, "revision": got.name}


def _model_type(folder: Path, spec: str) -> str:
    """The type of the model in `folder`.

    Raises:
        ValueError: no configuration.
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
    return str(settings.get("model_type") if isinstance(settings, dict) else None)


def load_model(
    model: LocatedModel,
    architecture: str,
    device: str,
    dtype: str,
    unused: tuple[str, ...] = (),
    **changes: Any,
) -> Any:
    """Load a model as a class of transformers, ready to encode.

    Args:
        model: what to load.
        architecture: name of the class.
        device: where it is to run.
        dtype: one of `DTYPES`.
        unused: how the names of further weights begin that may be missing.
        changes: of its configuration.

    Raises:
        ValueError: weights missing or unfit for the configuration.
        ImportError: transformers does not import.
    """
    import torch

    spec, folder = model.spec, model.folder
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
    safe = bool(_files(folder, SAFE_WEIGHTS))
    if not safe and not _files(folder, PICKLED_WEIGHTS):
        raise ValueError(f"{spec}: {folder / 'model.safetensors'} is missing, and so is pytorch_model.bin")
    try:
        with _explain_import_errors(architecture):
            import transformers

            loaded, report = getattr(transformers, architecture).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=safe,
                weights_only=True,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                **changes,
            )
    except UnpicklingError:
        # Torch's own message would advise the user to unpickle it anyway.
        raise ValueError(
            f"{spec}: the pickle in {folder} holds more than weights and was not read; "
            "use a revision with safetensors"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{spec}: {folder} cannot be loaded as {architecture} ({error})") from None
    # Transformers fills missing weights with random numbers, and only warns.
    missing = [name for name in sorted(report["missing_keys"]) if not name.startswith(UNUSED + unused)]
    if missing:
        raise ValueError(
            f"{spec}: {folder} lacks {len(missing)} weights of {architecture} (first: {missing[0]}); "
            "its weights are not those of its config.json; download the model again"
        )
    return loaded.eval().requires_grad_(False).to(device)


def load_processor(model: LocatedModel, kind: str) -> Any:
    """The processor of a model's input: `kind` is "AutoFeatureExtractor" (sound) or "AutoImageProcessor".

    Raises:
        ValueError: its settings are missing.
        ImportError: transformers does not import.
    """
    try:
        with _explain_import_errors(kind):
            import transformers

            return getattr(transformers, kind).from_pretrained(model.folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        path = model.folder / "preprocessor_config.json"
        if not path.is_file():
            raise ValueError(
                f"{model.spec}: {path} is missing; it says how the model's input is prepared: save the "
                "model's processor beside it with save_pretrained"
            ) from None
        raise ValueError(f"{model.spec}: {path} is no {kind} ({error})") from None


def load_tokenizer(model: LocatedModel) -> Any:
    """The fast tokenizer of a model of text.

    Raises:
        ValueError: its files are missing, or there is no fast tokenizer for them.
        ImportError: transformers does not import.
    """
    spec, folder = model.spec, model.folder
    # Without these, transformers may make a tokenizer that knows no word.
    if not _files(folder, VOCABULARIES):
        raise ValueError(
            f"{spec}: {folder / 'tokenizer.json'} is missing; save the model's tokenizer beside it with "
            "save_pretrained"
        )
    try:
        with _explain_import_errors("AutoTokenizer"):
            import transformers

            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, truncation_side="right"
            )
    # The errors of the libraries for vocabularies have no other common base.
    except Exception as error:
        if isinstance(error, ImportError):
            raise
        raise ValueError(
            f"{spec}: {folder} has no tokenizer that can be loaded ({_one_line(error)})"
        ) from None
    if not tokenizer.is_fast:
        raise ValueError(
            f"{spec}: {type(tokenizer).__name__} does not tell the words of its tokens; save a fast "
            f"tokenizer as {folder / 'tokenizer.json'}"
        )
    return tokenizer


@contextlib.contextmanager
def _explain_import_errors(name: str) -> Iterator[None]:
    """Around the use of the class `name` of transformers, which imports it then, and hides why that fails.

    Raises:
        ImportError: it does not import; says why.
    """
    try:
        yield
    except (ImportError, RuntimeError, AttributeError) as error:
        if mismatch := torchvision_mismatch():
            raise ImportError(mismatch) from None
        if not isinstance(error, ImportError):
            raise
        cause: BaseException = error
        while (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
        raise ImportError(
            f"{name} of transformers does not import ({_one_line(cause)}); install it again: "
            "pip install --upgrade transformers"
        ) from None


def torchvision_mismatch() -> str | None:
    """Why an installed torchvision does not import, or None; transformers imports it with many models."""
    import torch

    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a missing operator, an undefined symbol, a circular import, ...
        found = installed_version("torchvision") or "of no version"
        return (
            f"torchvision {found} does not fit torch {torch.__version__} ({_one_line(error)}); "
            "nothing here needs it: pip uninstall torchvision, or install both together from one index: "
            "pip install --force-reinstall torch torchvision"
        )
    return None


def _one_line(error: BaseException) -> str:
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
    """Versions that change the last digits of features."""
    import torch
    import transformers

    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "processor": type(processor).__name__,
    }


def _files(folder: Path, patterns: list[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _sha256(folder: Path, settings: list[str]) -> str:
    weights = _files(folder, SAFE_WEIGHTS) or _files(folder, PICKLED_WEIGHTS)
    total = hashlib.sha256()
    for path in _files(folder, settings) + weights:
        with path.open("rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
