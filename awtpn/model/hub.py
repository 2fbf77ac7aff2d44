"""The Hugging Face Hub: models by name, fetched and shared. Weights are safetensors, never pickles."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.storage.local_path import local_path

# "user/model"; a path with more or fewer parts, or one that exists, is a path.
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
    """The folder of a model: an existing path is itself, "user/model" is fetched from the hub.

    "runs/demo" is a path where there is a folder "runs".

    Args:
        place: a path or a hub id; where both would do, the path wins.
        files: to fetch of the model, all of one revision.
        optional: to fetch as well, where the model has them.
        revision: branch, tag or commit; default: the newest.
        token: of the hub; default: that of `hf auth login`.
        cache_dir: where fetched models are kept; default: the hub's own cache.
        local_files_only: take what was fetched before; no network.

    Raises:
        ValueError: neither a path nor a model that the hub gives, or a URL; says why.
    """
    path = local_path(place)
    if path.exists():
        return path
    # Where its folder is here, a missing path is a slip of the pen, and the hub would only cost time.
    if not HUB_ID.fullmatch(str(place)) or path.parent.is_dir():
        raise ValueError(
            f"{place} is no run, checkpoint or export: it does not exist (and a name on the Hugging Face Hub "
            "reads USER/MODEL)"
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
            revision = folder.name  # the commit: files of two revisions must not be mixed
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{place} is no folder here, and the Hugging Face Hub gave no such model: {reason} (check the "
            "name; a private model needs `hf auth login`; without network fetch it beforehand)"
        ) from None
    assert folder is not None
    return folder


def upload(folder: Path, hub_id: str, private: bool = False, token: str | None = None) -> str:
    """Put an export folder onto the hub as one commit; returns the model's address.

    Raises:
        ValueError: no such id, not logged in or not allowed, or the hub cannot be reached; says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    if not HUB_ID.fullmatch(hub_id):
        raise ValueError(f"{hub_id!r} is no name of a model on the hub: write USER/MODEL")
    # No network is an error of the library that asks the hub (requests, httpx, httpx2, by version), of whose
    # errors the hub's own are.
    asking: tuple[Any, ...] = (*HfHubHTTPError.__bases__, OSError)
    api = HfApi(token=token)
    try:
        made = api.create_repo(hub_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload AWTPN model")
    except asking as error:
        said = " ".join(str(error).split())
        fix = "" if isinstance(error, HfHubHTTPError) else f" (is {api.endpoint} to be reached from here?)"
        if isinstance(error, LocalTokenNotFoundError) or status_of(error) in (401, 403):
            fix = " (log in with `hf auth login` and a token that may write there)"
        raise ValueError(f"{hub_id}: the hub did not take the model: {said}{fix}") from None
    return str(made)


def status_of(error: Exception) -> int | None:
    """The HTTP status that the hub answered with; None where it did not answer."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
