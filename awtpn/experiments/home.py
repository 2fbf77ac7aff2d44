"""Where the runs of an experiment are: in a local folder, or at a URL, to which each run sends its files.

With a URL, each run has its own run folder there (`awtpn.run.remote`) and works in a folder of the cache. So
another machine can continue the experiment: it fetches a run that is done, and does not train it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from awtpn.config.command_line import run_address
from awtpn.experiments.runner import Job
from awtpn.run.remote import files
from shards.storage.local_path import is_remote


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
        at = f"{self.url}/{job.run_dir.relative_to(self.folder).as_posix()}"
        words = [word for word in job.arguments if not word.startswith("--run.dir=")]
        return Job((*words, f"--run.dir={at}", f"--run.local_dir={job.run_dir}"), job.run_dir)

    def send(self, written: Sequence[Path]) -> list[str]:
        """Send files of the local folder to the URL, if there is one.

        Returns:
            Where they are: their URLs, or their paths.

        Raises:
            OSError: the store cannot be reached, or refuses.
        """
        if self.url is None:
            return [str(path) for path in written]
        store = files.open_remote(self.url, self.storage_options)
        for path in written:
            files.put_file(store, path.relative_to(self.folder).as_posix(), path)
        return [f"{store.url}/{path.relative_to(self.folder).as_posix()}" for path in written]


def find_home(given: Path | str, storage_options: dict[str, Any]) -> Home:
    """The folder that `--dir` names: a path, or the URL of a folder.

    Raises:
        ValueError: a URL that no file system can open.
    """
    at = run_address(str(given), "--dir")
    if not is_remote(at):
        return Home(Path(at))
    return Home(files.local_copy(at, storage_options, "experiment"), at, storage_options)
