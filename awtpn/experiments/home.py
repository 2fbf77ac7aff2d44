"""Where the runs of an experiment are: in a local folder, or at a URL, to which each run sends its files.

With a URL, each run has its own run folder there (`awtpn.run.remote`) and works in a folder of the cache. So
another machine can continue the experiment: it fetches a run that is done, and does not train it again. Data
that a comparison packs is at the URL, too, because its place is a setting of the runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from awtpn.config.command_line import run_address
from awtpn.experiments.runner import Job
from awtpn.run.remote import files
from shards.storage.local_path import is_remote
from shards.storage.store import Store


@dataclass(frozen=True)
class Home:
    """The folder of an experiment.

    Attributes:
        folder: the local one.
        url: where its content goes; None: nowhere.
        storage_options: for the URL.
    """

    folder: Path
    url: str | None = None
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)

    def place(self, job: Job) -> Job:
        """The training of a job, whose local folder is within this one, as a run at the URL."""
        if self.url is None:
            return job
        words = [word for word in job.arguments if not word.startswith("--run.dir=")]
        where = (f"--run.dir={self.at(job.run_dir)}", f"--run.local_dir={job.run_dir}")
        return Job((*words, *where), job.run_dir)

    def at(self, path: Path) -> str:
        """Where a file or folder within the local folder belongs: its URL, or its path."""
        return str(path) if self.url is None else f"{self.url}/{self._name(path)}"

    def read(self, path: Path) -> bytes | None:
        """The content of a small file, by its path within the local folder; None if there is none.

        Raises:
            OSError: the store cannot be reached, or refuses.
        """
        if self.url is None:
            return path.read_bytes() if path.is_file() else None
        return files.read_bytes(self._open(), self._name(path))

    def fetch(self, path: Path) -> None:
        """Bring a file that another machine has sent, unless it is in the local folder or nowhere.

        Raises:
            OSError: the store cannot be reached, or refuses.
        """
        if self.url is not None and not path.exists():
            with contextlib.suppress(FileNotFoundError):
                files.get_file(self._open(), self._name(path), path)

    def send(self, written: Sequence[Path]) -> list[str]:
        """Send files of the local folder to the URL, if there is one.

        Returns:
            Where they are: their URLs, or their paths.

        Raises:
            OSError: the store cannot be reached, or refuses.
        """
        if self.url is None:
            return [str(path) for path in written]
        store = self._open()
        for path in written:
            files.put_file(store, self._name(path), path)
        return [f"{store.url}/{self._name(path)}" for path in written]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _open(self) -> Store:
        assert self.url is not None
        return files.open_remote(self.url, self.storage_options)


def find_home(given: Path | str, storage_options: dict[str, Any]) -> Home:
    """The folder that `--dir` names: a path, or the URL of a folder.

    Raises:
        ValueError: a URL that no file system can open.
    """
    at = run_address(str(given), "--dir")
    if not is_remote(at):
        return Home(Path(at))
    return Home(files.local_copy(at, storage_options, "experiment"), at, storage_options)
