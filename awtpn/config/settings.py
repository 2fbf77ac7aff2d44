"""The configuration sections `run`, `data`, `train` and `track`; the docstring of a key is its `--help`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, cast

from shards.format.precision_names import short_name
from shards.storage.local_path import is_remote

ROLES = ("train", "val", "test")
# Of one rank; no machine has more cores.
MOST_THREADS = 4096
Precision = Literal["fp32", "bf16", "fp16", "float32", "bfloat16", "float16"]
LONGEST_TIMEOUT = 1e8  # three years
MOST_PROFILED = 100  # steps; a trace of more is too large to be opened
TENSORBOARD = "tensorboard"
TRACKERS = (TENSORBOARD, "wandb", "mlflow")
# Of a project or experiment: MLflow puts the name into a query.
PROJECT_NAME = re.compile(r"[\w .:/-]{1,100}")
LONGEST_UPLOAD_PAUSE_S = 3600.0
DEMO = "demo"
# As data.train: corpora that are made on first use, and what `ensure_demo` calls each of them.
DEMOS = {
    DEMO: "classification",
    "demo-values": "values",
    "demo-labels": "labels",
    "demo-recordings": "recordings",
}


@dataclass
class RunConfig:
    """One run: its folder, its seed and what it starts from."""

    dir: str | None = None
    """Run folder; default: runs/<data>-<time>, agreed over ranks. Or any fsspec URL (s3, gs, sftp, ...): the
    run then works in a local folder on each node, and sends records and checkpoints to the URL."""
    seed: int = 0
    """Seeds the weights, the order of utterances, dropout and negatives."""
    resume: str = "auto"
    """auto: resume from run.dir's latest checkpoint if there is one; never; or a checkpoint folder, or the
    URL of one (URL/checkpoints/step-00000120)."""
    init_from: str | None = None
    """Initial weights: a run, checkpoint or export folder, or the URL of a run, of the same modalities or
    others; a new classifier where its labels differ."""
    local_dir: str | None = None
    """With a URL as run.dir: the local folder of each node; default: in the cache, named by the URL."""
    upload_every: float = 30.0
    """With a URL as run.dir: seconds between two looks at what has changed; checkpoints are sent at once."""
    storage_options: dict = field(default_factory=dict, repr=False)
    """Options for fsspec for run.dir (endpoint, region, ...). Never written to the run folder."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for settings that contradict each other."""
        if not 1 <= self.upload_every <= LONGEST_UPLOAD_PAUSE_S:
            raise ValueError(
                f"run.upload_every must be 1 to {LONGEST_UPLOAD_PAUSE_S:.0f} s, but is {self.upload_every:g}"
            )
        if self.local_dir is not None and not (self.dir and is_remote(self.dir)):
            raise ValueError(
                "run.local_dir is for a run whose run.dir is a URL: name the folder as run.dir instead"
            )


@dataclass
class SelectConfig:
    """Utterances to use, by metadata column: {column: value or list of values}."""

    # Not dict[str, Any]: jsonargparse would parse its strings again and turn "04" into the number 4.
    train: dict | None = None
    """E.g. {fold: [0, 1, 2]}."""
    val: dict | None = None
    """E.g. {fold: 3}."""
    test: dict | None = None
    """E.g. {session: Ses05}, or {actor: "04"} for a column of strings that look like numbers."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for a value that no metadata column can hold."""
        for role in ROLES:
            for column, values in (getattr(self, role) or {}).items():
                if not isinstance(column, str):
                    raise ValueError(f"data.select.{role}: {column!r} is no column name; write it in quotes")
                for value in values if isinstance(values, list) else [values]:
                    if not isinstance(value, str | bool | int | float):
                        raise ValueError(
                            f"data.select.{role}.{column} takes a value or a list of them, not {value!r:.60}"
                        )


@dataclass
class DataConfig:
    """The features: packed datasets (see `awtpn pack`), a local path or any fsspec URL."""

    train: str = DEMO
    """Dataset folder or manifest; URL#split names a split. "demo" makes the demo corpus, "demo-values" and
    "demo-labels" those with values and with several labels at once, "demo-recordings" one of sound and
    pictures; ./demo is a folder of that name."""
    val: str | None = None
    """Default: the split "val" ("valid", "dev") of data.train, or its selection by data.select.val."""
    test: str | None = None
    """Default: the split "test" of data.train, or its selection by data.select.test."""
    select: SelectConfig = field(default_factory=SelectConfig)
    """Select utterances by metadata, for cross-validation without packing again."""
    target: str | list[str] | None = None
    """What to learn: a target that the dataset names, "label" (its classes), or metadata columns, such as
    valence,arousal; default: the dataset's own target. A model has one task."""
    standardize: bool = True
    """Standardize each feature by its mean and standard deviation over the training utterances."""
    cache_dir: str | None = None
    """Where remote shards are kept; default: $AWTPN_CACHE_DIR, or ~/.cache/awtpn-shards."""
    cache_limit: str | None = None
    """Largest size of the cache, e.g. 200GB; default: no limit."""
    streams: int | None = None
    """Canonical streams, into which the order of utterances is divided; default: by batch and shard count."""
    threads: int | None = None
    """Threads of each rank that read the features; default: its share of the cores, at most 8."""
    damaged_budget: int = 0
    """Damaged or missing training utterances to leave out before the run stops; 0: stop at the first."""
    check_crc: bool = False
    """Detect flipped bits in local files by the CRC-32 of each array; costs 0.5 ms of one core per MB."""
    storage_options: dict = field(default_factory=dict, repr=False)
    """Options for fsspec (endpoint, region, ...). Never written to the run folder."""


@dataclass
class TrainConfig:
    """Length, batch size, precision and records of the training."""

    epochs: int | None = None
    """Passes over the training utterances; default: 10, or more where these have fewer than min_steps
    optimizer steps."""
    min_steps: int = 600
    """Optimizer steps that a run has at least, in whole epochs, where `epochs` is not given."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, wherever in an epoch."""
    global_batch_size: int = 32
    """Utterances per optimizer step, over all ranks."""
    micro_batch_size: int | None = None
    """Utterances per forward pass of one rank; default: global_batch_size / ranks, without accumulation."""
    precision: Precision = "fp32"
    """Precision of the projections and attention products; distances, softmaxes and losses stay float32."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; default: as launched (2 under `deepspeed` without a config file)."""
    log_every: int = 10
    """Steps between writes to metrics.jsonl and TensorBoard; a write holds one line for each step. Into a
    log file, each prints a line, at most one every 30 s."""
    validate_every: int | None = None
    """Epochs between validations; the last epoch always validates. null: a 20th of the run's epochs, at least
    one, and only these epochs end with a checkpoint."""
    patience: int | None = None
    """Stop after this many validations in a row without a new best checkpoint; default: never. The learning
    rate falls as if the run had its full length."""
    checkpoint_every: int | None = None
    """Steps between checkpoints besides the one after every epoch."""
    async_checkpoint: bool = True
    """Write and send checkpoints in the background: a step waits only until the state is copied to the host
    of rank 0, which keeps room for this copy (`awtpn doctor --memory` tells how much)."""
    skip_budget: int = 10
    """Steps with a loss or gradient that is not finite to leave out before the run stops."""
    best_by: str | None = None
    """Validation metric that chooses the best checkpoint; default: w-F1 for classes, MAE for values, F1 for
    several labels."""
    timeout: float = 1800.0
    """Seconds without a finished step after which a rank counts as hung, and the run stops."""
    ema_decay: float = 0.99
    """Decay of a moving average of the weights over steps, such as 0.999; validation, the best checkpoint,
    tests and exports use the averages. Early steps use a smaller decay. 0: no averages."""
    keep_last: int = 2
    """Checkpoints to keep besides the best."""
    pictures: Literal["auto", "always", "never"] = "auto"
    """When to draw TensorBoard figures. auto: drawing takes at most 1 % of the run time, and 10 % for the
    last validation and the final results."""
    threads: int | None = None
    """CPU threads of each rank; default: as the run started, else OMP_NUM_THREADS, else the usable cores."""
    compile: bool = False
    """Compile the model by torch.compile; needs a C++ compiler, and about a minute at the start."""
    profile: list[int] | None = None
    """[FROM, TO]: record these optimizer steps, counted from 1, by torch.profiler, and write a trace of each
    rank into profile/ of the run folder, for Perfetto or TensorBoard. It slows down these steps alone."""

    def __post_init__(self) -> None:
        self.precision = cast(Precision, short_name(self.precision))

    def validate(self) -> None:
        """Raise ValueError, naming the key, for a setting that no training can have."""
        for name in ("global_batch_size", "log_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        optional = (
            "epochs",
            "max_steps",
            "micro_batch_size",
            "validate_every",
            "patience",
            "checkpoint_every",
        )
        for name in (*optional, "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        if self.min_steps < 0:
            raise ValueError(f"train.min_steps must not be negative, but is {self.min_steps}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay must lie in [0, 1), not {self.ema_decay}")
        if (self.threads or 1) > MOST_THREADS:
            raise ValueError(f"train.threads must be at most {MOST_THREADS}, not {self.threads}")
        if self.profile is not None:
            self.check_profile(self.profile)
        if self.skip_budget < 0 or not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise ValueError(
                "train.skip_budget must not be negative, and train.timeout must be above 0 and at most "
                f"{LONGEST_TIMEOUT:.0e} seconds"
            )

    @staticmethod
    def check_profile(window: list[int]) -> None:
        """Raise ValueError for a `profile` that is no window of steps."""
        if len(window) != 2 or not 1 <= window[0] <= window[1]:
            raise ValueError(
                f"train.profile takes a first and a last step, counted from 1, such as [20, 24], not {window}"
            )
        if (steps := window[1] - window[0] + 1) > MOST_PROFILED:
            raise ValueError(f"train.profile must name at most {MOST_PROFILED} steps, not {steps}")


@dataclass
class TrackConfig:
    """Where a run is recorded besides its folder, and what is measured for the records alone."""

    to: str | list[str] = TENSORBOARD
    """Where settings and scalars go: tensorboard (always, in the run folder), wandb, mlflow; several with
    commas. Servers and accounts are set by these services' own variables, such as WANDB_MODE and
    MLFLOW_TRACKING_URI."""
    project: str = "awtpn"
    """Project of wandb, experiment of MLflow; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME have precedence."""
    norms_every: int = 50
    """Steps between norms of gradients and weights of the model's parts; 0: none."""

    def __post_init__(self) -> None:
        given = self.to.split(",") if isinstance(self.to, str) else self.to
        named = [name.strip() if isinstance(name, str) else name for name in given]
        # The event file belongs to the run folder: the report reads it.
        self.to = list(dict.fromkeys([TENSORBOARD, *named]))

    @property
    def services(self) -> list[str]:
        """Of `to`, without TensorBoard."""
        return [name for name in self.to if name != TENSORBOARD]

    def validate(self) -> None:
        """Raise ValueError, naming the key, for settings that no run can have."""
        if unknown := [name for name in self.to if name not in TRACKERS]:
            raise ValueError(f"track.to takes {', '.join(TRACKERS)}, not {unknown[0]!r:.60}")
        if not PROJECT_NAME.fullmatch(self.project):
            raise ValueError(
                f"track.project takes up to 100 letters, digits, spaces and -_.:/, not {self.project!r:.60}"
            )
        if self.norms_every < 0:
            raise ValueError(f"track.norms_every must not be negative, but is {self.norms_every}")
