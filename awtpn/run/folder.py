"""The folder of a run: all ranks use the same one, one job at a time, and a resumed run continues in it.

The main rank reads what may differ between hosts (who holds the lock, which checkpoint a link points to) and
broadcasts it (`run_on_rank0`): network disks show a change to other hosts later.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote
from typing import TypeVar

from awtpn.config.former_defaults import keep_former_defaults
from awtpn.config.schema import Config, differing_keys, dump, dump_yaml
from awtpn.distributed import doctor
from awtpn.distributed.world import World
from awtpn.model.files import CARD_FILE, WEIGHTS_FILE, step_folders
from awtpn.run import checkpoint
from awtpn.run.atomic_write import write_atomically
from awtpn.run.demos import demo_name, refuse_misspelled
from awtpn.run.lock import run_lock
from awtpn.run.position import Position, load_position
from awtpn.run.record import CONFIG_FILE, read_as_recorded, read_settings, read_status
from awtpn.run.remote.checkpoints import FOLDER
from awtpn.run.remote.commands import run_folder_on_ranks
from awtpn.run.remote.session import folder_on_this_host, on_this_host
from awtpn.run.results import archive_results
from shards.format.schema import MANIFEST
from shards.safe_io.printable import printable_lines
from shards.storage.credentials import redact_url
from shards.storage.local_path import is_remote
from shards.storage.store import dataset_name

# Settings that must not change when a run resumes. Layout, precision, length and paths may.
FIXED_KEYS = (
    "run.seed",
    "data.standardize",
    "data.target",
    "task.",
    "model.",
    "prototypes.",
    "loss.",
    "optim.",
    "augment.",
)
# Settings of encoders that do not change what is trained.
FREE_KEYS = ("model", "pass_seconds", "pass_pictures", "max_padding", "checkpointing")
# With another value of these, weights can be taken over, but the training cannot go on.
NETWORK_KEYS = ("data.target", "task.", "model.shared_dim", "model.prototypes_per_class", "model.modalities")
# Settings of evaluation: if they change, a finished run is evaluated again.
EVALUATION_KEYS = ("data.val", "data.test", "data.select", "train.best_by")
T = TypeVar("T")


def run_on_rank0(world: World, action: Callable[[], T]) -> T:
    """Run `action` on the main rank; every rank returns its result or raises its error.

    Raises:
        ValueError: raised by the action; on other ranks also for its OSError.
    """
    result, failure = None, None
    if world.is_main:
        try:
            result = action()
        except Exception as error:  # of any kind, because the other ranks wait for the broadcast
            failure = error
    result, message = world.broadcast_object((result, None if failure is None else str(failure)))
    if failure is not None and not isinstance(failure, OSError | ValueError):
        raise failure
    if message is not None:
        raise ValueError(message)
    return result


def prepare_run_dir(config: Config, world: World) -> Path:
    """Agree on the run folder, and check the cluster on every rank; of a URL it is the folder of this host.

    Raises:
        ValueError: the run cannot work; gives causes and fixes, on every rank.
    """
    data = config.data
    if config.run.dir and is_remote(config.run.dir):
        return prepare_local_copy(config, world)
    default = Path("runs") / f"{dataset_name(data.train)}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = Path(world.broadcast_object(str(config.run.dir or default)))
    run_on_rank0(world, lambda: check_folder(config, run_dir))
    check_hosts(config, world, run_dir)
    return run_dir


def prepare_local_copy(config: Config, world: World) -> Path:
    """The folder of this host in which a run works whose run.dir is a URL; hosts need not share it.

    Raises:
        ValueError: the run cannot work; gives causes and fixes, on every rank.
    """
    error = None
    try:
        run_dir = folder_on_this_host(config)
        check_folder(config, run_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as failure:
        error = f"rank {world.rank} on {platform.node()}: {failure}: name another folder as run.local_dir"
    if errors := [text for text in world.all_gather_object(error) if text is not None]:
        raise ValueError(errors[0])
    check_hosts(config, world, None)
    return run_dir


def check_hosts(config: Config, world: World, run_dir: Path | None) -> None:
    """Check the cluster on every rank, and print warnings.

    Args:
        config: of the run.
        world: the ranks.
        run_dir: the folder that all hosts share; None if they need not.

    Raises:
        ValueError: the run cannot work; gives causes and fixes, on every rank.
    """
    data = config.data
    given = [url for url in (data.train, data.val, data.test) if url is not None]
    run_on_rank0(world, lambda: refuse_misspelled(*given))
    urls = [url for url in given if demo_name(url) is None]
    _, findings = doctor.check_cluster(world, run_dir, urls, data.cache_dir, data.storage_options)
    if errors := [f"{found.what}; fix: {found.fix}" for found in findings if found.level == "error"]:
        raise ValueError(f"this run cannot work: {errors[0]}" + "".join(f"\n- {e}" for e in errors[1:]))
    if world.is_main:
        for finding in findings:
            print(printable_lines(finding))


def check_folder(config: Config, run_dir: Path) -> None:
    """Check that the folder can be the folder of this run, before anything is written there.

    Raises:
        ValueError: it cannot; says why and what to do.
    """
    fix, absolute = "choose another run.dir", run_dir.absolute()
    try:
        taken = run_dir.exists() and not run_dir.is_dir()
        there = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
        if max(len(os.fsencode(name)) for name in absolute.parts) > os.pathconf(there, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except (OSError, ValueError) as error:  # too long a name, a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"run.dir {str(run_dir)[:80]!r}: {reason}: {fix}") from None
    if run_dir.is_symlink() and not run_dir.exists():
        raise ValueError(f"run.dir {run_dir} is a link to nothing: {fix}")
    if taken:
        raise ValueError(f"run.dir {run_dir} is a file: {fix}")
    if (run_dir / MANIFEST).exists():
        raise ValueError(
            f"run.dir {run_dir} holds a packed dataset ({MANIFEST}): {fix}, e.g. a folder beside it"
        )
    if (run_dir / CARD_FILE).exists() and (run_dir / WEIGHTS_FILE).exists():
        raise ValueError(
            f"run.dir {run_dir} holds a model ({WEIGHTS_FILE}): {fix}; run.init_from starts from its weights"
        )
    read_settings(run_dir)
    named = config.run.resume not in ("auto", "never")
    if named and not is_remote(config.run.resume) and not run_dir.exists():
        folder = resume_folder(config.run.resume)
        if problem := checkpoint.find_resume_problem(folder, names=()):
            raise ValueError(f"run.resume: {problem}")


def keep_settings_of_run(config: Config, run_dir: Path, world: World) -> None:
    """Give `config` the former defaults that the run in the folder began with; see `keep_former_defaults`."""
    if config.run.resume == "never":
        return
    if recorded := run_on_rank0(world, lambda: read_as_recorded(run_dir)):
        keep_former_defaults(config, recorded)


@contextlib.contextmanager
def exclusive_run(run_dir: Path, world: World) -> Iterator[None]:
    """Keep other jobs out of the folder while the block runs.

    Raises:
        ValueError: another job trains there already; on every rank.
    """
    with contextlib.ExitStack() as stack:
        run_on_rank0(world, lambda: stack.enter_context(run_lock(run_dir)))
        yield


def is_fixed(key: str) -> bool:
    """Whether a setting must not change when a run resumes."""
    encoder, last = key.startswith("encoder."), key.rpartition(".")[2]
    return key.startswith(FIXED_KEYS) or (encoder and last not in FREE_KEYS)


# --- Where a run begins --------------------------------------------------------------------------


def resolve_resume(
    config: Config, run_dir: Path, fetched: Path | None = None
) -> tuple[Path | None, Position]:
    """The checkpoint that `run.resume` means (None to start anew), and the position to resume at.

    Args:
        config: of the run.
        run_dir: the run folder.
        fetched: where `run.resume` is a URL, the local copy of the checkpoint.

    A batch scheduler repeats the same command. So a run that began from the checkpoint named by `run.resume`,
    or with `never`, resumes from its own latest checkpoint when the same command is given again.

    Raises:
        ValueError: there is no such checkpoint, or it is damaged; says what to do.
    """
    root, resume = run_dir / "checkpoints", config.run.resume
    folder = checkpoint.find_latest(root)
    began_from = ""
    if resume == "never":
        if folder and not _same_command(config, run_dir):
            raise ValueError(
                f"{run_dir} holds another run's checkpoints: remove them, or choose another run.dir"
            )
    elif resume != "auto":
        # Links stay, because `best` and `latest` move later.
        named = os.path.abspath(resume) if fetched is None else redact_url(resume)
        if folder and _began_from(folder) == named:
            print(f"run.resume: this run began from {named} already, and resumes from {folder}")
        else:
            folder, began_from = fetched or resume_folder(resume), named
    if folder is None:
        return None, Position()
    if not began_from and (changed := [key for key in changed_keys(config, run_dir) if is_fixed(key)]):
        other_network = any(key.startswith(NETWORK_KEYS) for key in changed)
        option = (
            "with its weights there, --run.init_from"
            if other_network
            else "from here with these, --run.resume"
        )
        raise ValueError(
            f"{run_dir} holds a run with another {', '.join(changed)}: choose another run.dir; or, to go on "
            f"{option} {quote(str(folder))}"
        )
    if problem := checkpoint.find_resume_problem(folder):
        raise ValueError(problem + checkpoint.suggest_intact(folder))
    position = load_position(folder)
    position.began_from = began_from or position.began_from
    # Without a valid best checkpoint a new one is chosen, at the latest at the end of the run. An older
    # version could choose one by outputs that were not finite.
    figures = (position.best_value or 0.0, position.best_tie or 0.0)
    if best_of(root, folder, position) is None or not all(map(math.isfinite, figures)):
        position.best_by, position.best_value, position.best_tie = "", None, None
        position.best_step, position.validated = 0, 0
    return folder, position


def agree_on_resume(config: Config, run_dir: Path, world: World) -> tuple[Path | None, Position]:
    """`resolve_resume` of the main rank; where run.dir or run.resume is a URL, a path of this host.

    Raises:
        ValueError: as `resolve_resume`, on every rank.
    """
    fetched = fetch_resumed(config, world)
    resumed, position, main_dir, of_main = run_on_rank0(
        world, lambda: (*resolve_resume(config, run_dir, fetched), run_dir.resolve(), fetched)
    )
    if fetched is not None and resumed == of_main:
        return fetched, position
    if config.run.dir and is_remote(config.run.dir):
        resumed = on_this_host(resumed, main_dir, run_dir)
    return resumed, position


def fetch_resumed(config: Config, world: World) -> Path | None:
    """The local copy of the checkpoint that `run.resume` names, where that is a URL; every rank calls.

    Raises:
        ValueError: there is no such checkpoint; on every rank.
    """
    resume = config.run.resume
    if not is_remote(resume):
        return None
    if f"/{FOLDER}/" not in resume:
        raise ValueError(
            f"run.resume {redact_url(resume)} must name a checkpoint: add /{FOLDER}/latest, or another one"
        )
    return run_folder_on_ranks(resume, "checkpoints", config.run.storage_options, world)


def resume_folder(resume: str) -> Path:
    """The folder that `run.resume` names; ValueError if there is none."""
    if not Path(resume).is_dir():
        raise ValueError(
            f"run.resume takes auto, never or a checkpoint folder, and there is no folder {resume}"
        )
    return Path(resume).resolve()


def _began_from(folder: Path) -> str:
    """The checkpoint that `run.resume` named when a run began; "" if it is not recorded."""
    try:
        return load_position(folder).began_from
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _same_command(config: Config, run_dir: Path) -> bool:
    """Whether the folder's run was started with the same settings and has not finished."""
    try:
        said, before = read_status(run_dir)["status"], read_settings(run_dir)
    except (OSError, ValueError):
        return False
    now = dump(config)
    for settings in (before, now):  # another host may have another one
        (settings or {}).get("run", {}).pop("local_dir", None)
    return said != "done" and before == now


def best_of(root: Path, resumed: Path, position: Position) -> Path | None:
    """The best checkpoint of a run that resumes from `resumed`, if it is in the run's own folder `root`."""
    best = root / checkpoint.folder_name(position.best_step)
    return best if position.best_step and _is_own(root, resumed, position) and best.is_dir() else None


def _is_own(root: Path, resumed: Path, position: Position) -> bool:
    """Whether `resumed` is one of the run's own checkpoints, not a copy or one of another run."""
    return resumed == root.resolve() / checkpoint.folder_name(position.step)


def changed_keys(config: Config, run_dir: Path) -> list[str]:
    """The keys with other values than at the last start of the folder's run; none where it is new."""
    if (recorded := read_settings(run_dir)) is None:
        return []
    changed = differing_keys(recorded, dump(config))
    return [key for key in changed if key not in ("run.dir", "run.resume", "run.local_dir")]


def rewind_run_folder(
    config: Config, run_dir: Path, resumed: Path | None, position: Position, done: bool
) -> None:
    """Set the folder to `position`: move later checkpoints aside and record the settings (main rank only).

    Call it when all checks have passed, so that a refused start changes nothing. Settings with which no step
    is trained (`done`) are not recorded, except those of evaluation.
    """
    root = run_dir / "checkpoints"
    own = resumed is not None and _is_own(root, resumed, position)
    last = checkpoint.folder_name(position.step) if own else ""
    beyond = [folder for folder in step_folders(root) if folder.name > last]
    if beyond:
        aside = root / time.strftime("abandoned-%Y%m%d-%H%M%S")
        aside.mkdir()
        for folder in beyond:
            os.replace(folder, aside / folder.name)
        print(f"resuming from {resumed}: {', '.join(f.name for f in beyond)} of {root} moved to {aside}")
    if root.is_dir():
        best = best_of(root, resumed, position) if resumed else None
        for name, named in (("best", best), ("latest", resumed if own else None)):
            if named:
                checkpoint.update_symlink(root / name, named)
            else:
                (root / name).unlink(missing_ok=True)
    changed = changed_keys(config, run_dir)
    is_evaluated_again = resumed is not None and any(key in EVALUATION_KEYS for key in changed)
    if not done or is_evaluated_again:
        if results := archive_results(run_dir):
            why = "is evaluated on other data" if done else f"continues from step {position.step}"
            print(f"the run {why}; its results so far: {results}")
        record_settings(config, run_dir, position.step)


def record_settings(config: Config, run_dir: Path, step: int) -> None:
    """Write config.yaml; if it held other settings, print so and keep them as config-STEP.yaml."""
    file, kept = run_dir / CONFIG_FILE, run_dir / f"config-{step}.yaml"
    if step and (changed := changed_keys(config, run_dir)):
        if not kept.exists():
            write_atomically(kept, file.read_text())
        print(f"from step {step} on with another {', '.join(changed)}; the former settings: {kept}")
    write_atomically(file, dump_yaml(config))
