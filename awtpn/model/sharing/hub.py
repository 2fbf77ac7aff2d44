"""Download models from the Hugging Face Hub and upload them. Weights are safetensors, never pickles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from shards.storage.local_path import local_path

# "user/model". An existing path, or one with more or fewer parts, is a path.
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
# Of this form, too, but always paths: what is in the folders that the commands and the README use, or has the
# suffix of a file. The hub must not be told such names, and the user must not wait for it.
LOCAL_FOLDERS = frozenset({"runs", "checkpoints", "data", "configs"})
LOCAL_SUFFIXES = frozenset({".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".json", ".yaml", ".yml"})
ANSWER_S = 5.0
"""Most seconds to wait for the hub's first answer."""


def locate(
    place: str | Path,
    files: Sequence[str],
    *,
    optional: Sequence[str] = (),
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a model: an existing path as it is; "user/model" is downloaded from the hub.

    Args:
        place: a path or a hub id; see `refuse_missing` for what is a path.
        files: to download, all of one revision.
        optional: to download as well if the model has them.
        revision: branch, tag or commit; default: the newest.
        token: hub token; default: that of `hf auth login`.
        cache_dir: folder for downloaded models; default: the hub's own cache.
        local_files_only: use only what was downloaded before; no network.

    Raises:
        ValueError: the path does not exist, the hub does not have the model, or `place` is a URL; says why.
    """
    refuse_missing(place)
    if (path := local_path(place)).exists():
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    unreachable = None if local_files_only else why_unreachable(str(place), files[0], revision, token)
    folder = None
    try:
        for name in (*files, *optional):
            try:
                file = hf_hub_download(
                    str(place),
                    name,
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only or unreachable is not None,
                )
            except EntryNotFoundError:
                if name in optional:
                    continue
                raise
            folder = Path(file).parents[name.count("/")]
            revision = folder.name  # the commit: take all further files from the same one
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(unreachable or error).strip().partition("\n")[0]
        raise ValueError(
            f"{place} is not a folder on this machine, and could not be downloaded from the hub: "
            f"{reason} (check the name; a private model needs `hf auth login`; without network, download "
            "it beforehand)"
        ) from None
    assert folder is not None
    return folder


def refuse_missing(place: str | Path) -> None:
    """Refuse a path that does not exist, without asking the hub.

    A path is everything but "user/model". Of this form, paths are also: those that exist, or whose folder
    exists ("runs/demmo" where there is a folder "runs"), and those in `LOCAL_FOLDERS` or with one of
    `LOCAL_SUFFIXES`.

    Raises:
        ValueError: it is a path and does not exist, or it is a URL.
    """
    path, text = local_path(place), str(place)
    is_path = (
        not HUB_ID.fullmatch(text)
        or path.parent.is_dir()
        or path.parts[0] in LOCAL_FOLDERS
        or path.suffix in LOCAL_SUFFIXES
    )
    if is_path and not path.exists():
        raise ValueError(
            f"{place} is not a run, checkpoint or export: it does not exist{suggest_beside(path)} "
            "(a model on the Hugging Face Hub has the form USER/MODEL)"
        )


def suggest_beside(path: Path) -> str:
    """The latest of the folders whose names begin like that of `path`, or else one of a similar name."""
    names = sorted(folder.name for folder in path.parent.glob("*") if folder.is_dir())
    longer = [name for name in names if path.name and name.startswith(f"{path.name}-")]
    alike = longer[-1:] or get_close_matches(path.name, names, 1)
    return f"; did you mean {path.with_name(alike[0])}?" if alike else ""


def why_unreachable(hub_id: str, file: str, revision: str | None, token: str | bool | None) -> str | None:
    """Why the hub cannot be reached; None if it answers, whatever it answers.

    `hf_hub_download` would find that out itself, but tries six times, over 24 s.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(hub_id, file, revision=revision), token=token, timeout=ANSWER_S)
    except network_errors() as error:
        if not isinstance(error, HfHubHTTPError):
            return " ".join(str(error).split()) or type(error).__name__
    except ValueError:
        pass  # a token that is missing, or an answer that is not the hub's: the download says so
    return None


def network_errors() -> tuple[Any, ...]:
    """Errors of the hub's HTTP library, which differs by version (requests, httpx or a successor)."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError)


def upload(folder: Path, hub_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload an export folder to the hub as one commit; returns the model's URL.

    Raises:
        ValueError: the id is malformed, the token lacks the right, or the hub cannot be reached; says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not HUB_ID.fullmatch(hub_id):
        raise ValueError(f"{hub_id!r} is not a valid model name on the hub: write USER/MODEL")
    api = HfApi(token=token)
    try:
        made = api.create_repo(hub_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload model")
    except network_errors() as error:
        reason = " ".join(str(error).split())
        fix = "" if isinstance(error, HfHubHTTPError) else f" (can this machine reach {api.endpoint}?)"
        if isinstance(error, LocalTokenNotFoundError) or http_status(error) in (401, 403):
            fix = " (log in with `hf auth login` and a token with write access)"
        raise ValueError(f"{hub_id}: the upload to the hub failed: {reason}{fix}") from None
    return str(made)


def http_status(error: Exception) -> int | None:
    """The HTTP status of the hub's answer; None if there was no answer."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
