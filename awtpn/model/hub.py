"""Download models from the Hugging Face Hub and upload them. Weights are safetensors, never pickles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.storage.local_path import local_path

# "user/model". An existing path, or one with more or fewer parts, is a path.
HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


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

    "runs/demo" is a path if there is a folder "runs".

    Args:
        place: a path or a hub id; an existing path takes precedence.
        files: to download, all of one revision.
        optional: to download as well if the model has them.
        revision: branch, tag or commit; default: the newest.
        token: hub token; default: that of `hf auth login`.
        cache_dir: folder for downloaded models; default: the hub's own cache.
        local_files_only: use only what was downloaded before; no network.

    Raises:
        ValueError: the path does not exist, the hub does not have the model, or `place` is a URL; says why.
    """
    path = local_path(place)
    if path.exists():
        return path
    # If the parent folder exists, "runs/demmo" is a mistyped path: do not ask the hub, which takes time.
    if not HUB_ID.fullmatch(str(place)) or path.parent.is_dir():
        raise ValueError(
            f"{place} is not a run, checkpoint or export: it does not exist (a model on the Hugging Face Hub "
            "has the form USER/MODEL)"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

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
                    local_files_only=local_files_only,
                )
            except EntryNotFoundError:
                if name in optional:
                    continue
                raise
            folder = Path(file).parent
            revision = folder.name  # the commit: take all further files from the same one
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{place} is not a folder on this machine, and could not be downloaded from the hub: "
            f"{reason} (check the name; a private model needs `hf auth login`; without network, download "
            "it beforehand)"
        ) from None
    assert folder is not None
    return folder


def upload(folder: Path, hub_id: str, private: bool = False, token: str | None = None) -> str:
    """Upload an export folder to the hub as one commit; returns the model's URL.

    Raises:
        ValueError: the id is malformed, the token lacks the right, or the hub cannot be reached; says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not HUB_ID.fullmatch(hub_id):
        raise ValueError(f"{hub_id!r} is not a valid model name on the hub: write USER/MODEL")
    # Network errors come from the hub's HTTP library, which differs by version (requests or httpx).
    # HfHubHTTPError derives from that library's error.
    network_errors: tuple[Any, ...] = (*HfHubHTTPError.__bases__, OSError)
    api = HfApi(token=token)
    try:
        made = api.create_repo(hub_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload AWTPN model")
    except network_errors as error:
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
