"""Weights & Biases and MLflow, through Accelerate's trackers: how a run is opened there, and what it takes.

Servers, accounts and offline modes are set by these services' own variables. What they would collect by
themselves of the command line is switched off: it may hold credentials.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = "results/"  # how the tags of the best checkpoint's metrics begin
FINISH_S = 60.0  # to send what is left at the end of a run
NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")  # of MLflow
LONGEST_NAME = 250


class Service(NamedTuple):
    """An open run at a service."""

    run_id: str
    where: str
    """An address or folder, for users."""
    log: Callable[[int, Mapping[str, float]], None]
    finish: Callable[[], None]


def check_installed(names: list[str]) -> None:
    """Refuse services whose package is missing, without importing the others.

    Raises:
        ValueError: says how to install it.
    """
    for name in names:
        if find_spec(name) is None:
            raise ValueError(
                f'track.to names {name}, which is not installed: pip install "awtpn-at-scale[trackers]" or '
                f"{name}, or leave it out of track.to"
            )


def open_wandb(
    project: str, run_dir: Path, run_id: str | None, settings: Mapping[str, int | float | str]
) -> Service:
    """Begin a run, or continue the one of `run_id`; without a network only if WANDB_MODE is offline."""
    import wandb
    from accelerate.tracking import WandBTracker

    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", project),
        id=run_id,
        resume="allow",
        name=run_dir.absolute().name,
        dir=os.environ.get("WANDB_DIR", str(run_dir)),
        settings=wandb.Settings(
            silent=True,
            console="off",  # what a run prints stays here
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,  # words of the command line
            finish_timeout=FINISH_S,
        ),
    )
    tracker.start()
    tracker.store_init_configuration(dict(settings))
    run = tracker.tracker

    def log(step: int, scalars: Mapping[str, float]) -> None:
        if all(tag.startswith(RESULTS) for tag in scalars):
            # They belong to the best step, and wandb takes no step before the last one.
            run.summary.update(dict(scalars))
        else:
            tracker.log(dict(scalars), step=step)

    where = f"offline, in {run.settings.sync_dir}" if run.settings.mode == "offline" else run.url
    return Service(run.id, where or run.settings.sync_dir, log, tracker.finish)


def open_mlflow(
    project: str, run_dir: Path, run_id: str | None, settings: Mapping[str, int | float | str]
) -> Service:
    """Begin a run, or continue the one of `run_id`, in the store that MLFLOW_TRACKING_URI names."""
    import mlflow
    from accelerate.tracking import MLflowTracker

    tracker = MLflowTracker(project, run_id=run_id, run_name=run_dir.absolute().name)
    tracker.start()
    run = tracker.tracker
    # MLflow refuses other values of parameters that it has: those are of the run's first start.
    recorded = run.data.params
    named = {mlflow_name(key): value for key, value in settings.items()}
    tracker.store_init_configuration({key: x for key, x in named.items() if key not in recorded})

    def log(step: int, scalars: Mapping[str, float]) -> None:
        tracker.log({mlflow_name(tag): value for tag, value in scalars.items()}, step=step)

    return Service(
        run.info.run_id, f"run {run.info.run_id} in {mlflow.get_tracking_uri()}", log, tracker.finish
    )


def mlflow_name(tag: str) -> str:
    """The tag in characters that MLflow takes; it also refuses names that would be another path."""
    words = NOT_IN_NAMES.sub("_", tag).split("/")
    return "/".join(word if word.strip(".") else "_" for word in words)[:LONGEST_NAME]


OPENERS: dict[str, Callable[[str, Path, str | None, Mapping[str, Any]], Service]] = {
    "wandb": open_wandb,
    "mlflow": open_mlflow,
}
"""By the names that `track.to` takes."""
