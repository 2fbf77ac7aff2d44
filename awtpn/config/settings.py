"""The configuration sections `run`, `data` and `train`; the docstring under each key is its `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ROLES = ("train", "val", "test")
# Of a rank: more than any machine has cores.
MOST_THREADS = 4096
LONGEST_TIMEOUT = 1e8  # three years
DEMO = "demo"  # data.train of the run that needs nothing


@dataclass
class RunConfig:
    """One run: where it lives, and what it starts from."""

    dir: str | None = None
    """Run folder; default: runs/<data>-<time>, agreed over ranks."""
    seed: int = 0
    """Seeds the weights, the order of utterances, dropout and negatives."""
    resume: str = "auto"
    """auto: go on from run.dir's latest checkpoint where there is one; never; or a checkpoint folder."""
    init_from: str | None = None
    """Weights to start from: a run, checkpoint or export folder; other labels get a new classifier."""


@dataclass
class SelectConfig:
    """Utterances to use, by metadata column: {column: value or list of values}."""

    # Bare `dict`: of dict[str, Any] jsonargparse would read texts a second time, and make "04" the number 4.
    train: dict | None = None
    """E.g. {fold: [0, 1, 2]}."""
    val: dict | None = None
    """E.g. {fold: 3}."""
    test: dict | None = None
    """E.g. {session: Ses05}, or {actor: "04"} where a column of text looks like numbers."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for what no utterance's metadata can be."""
        for role in ROLES:
            for column, values in (getattr(self, role) or {}).items():
                if not isinstance(column, str):
                    raise ValueError(f"data.select.{role}: {column!r} names no column; write it in quotes")
                for value in values if isinstance(values, list) else [values]:
                    if not isinstance(value, str | bool | int | float):
                        raise ValueError(
                            f"data.select.{role}.{column} takes a value or a list of them, not {value!r:.60}"
                        )


@dataclass
class DataConfig:
    """Where the features are: packed datasets (see `awtpn pack`), local or any fsspec URL."""

    train: str = DEMO
    """Dataset folder or manifest; URL#split names a split. "demo" makes the demo corpus."""
    val: str | None = None
    """Default: split "val" ("valid", "dev") of data.train, or all of it where data.select.val says which."""
    test: str | None = None
    """Default: the split "test" of data.train, or all of it where data.select.test says which."""
    select: SelectConfig = field(default_factory=SelectConfig)
    """Utterances by metadata, for cross-validation without packing again."""
    standardize: bool = True
    """Standardise features with the selected training utterances' mean and deviation."""
    cache_dir: str | None = None
    """Where remote shards are kept; default: $AWTPN_CACHE_DIR, or ~/.cache/awtpn-shards."""
    cache_limit: str | None = None
    """Largest size of the cache, e.g. 200GB; default: no limit."""
    streams: int | None = None
    """Canonical streams the data is dealt to; default: chosen from global batch and shard count."""
    damaged_budget: int = 0
    """Training utterances that may be left out as damaged or missing; 0 stops at the first."""
    check_crc: bool = False
    """See flipped bits in local files, by the CRC-32 of each array: takes a core 0.5 ms per MB read."""
    storage_options: dict = field(default_factory=dict, repr=False)
    """Options for fsspec (endpoint, region, ...). Never written to the run folder."""


@dataclass
class TrainConfig:
    """How long, how big, how precise."""

    epochs: int = 30
    """Passes over the training utterances."""
    max_steps: int | None = None
    """Stop after this many optimizer steps, wherever in an epoch."""
    global_batch_size: int = 32
    """Utterances per optimizer step over all ranks; the same for every layout."""
    micro_batch_size: int | None = None
    """Utterances per forward on one rank; default: global / ranks, no accumulation."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the projections and attention products; distances, softmaxes and losses stay float32."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; default: as launched (2 under `deepspeed` without a config file)."""
    log_every: int = 10
    """Steps between writes to metrics.jsonl and TensorBoard (each step has its own line)."""
    validate_every: int = 1
    """Epochs between validations; the last epoch always validates."""
    checkpoint_every: int | None = None
    """Steps between checkpoints besides the one after every epoch."""
    skip_budget: int = 10
    """Steps with a loss or gradient that is not finite to leave out before giving up."""
    timeout: float = 1800.0
    """Seconds without a finished step after which a rank counts as hung and the run is stopped."""
    keep_last: int = 2
    """Checkpoints to keep besides the best."""
    pictures: Literal["auto", "always", "never"] = "auto"
    """Validations drawn into TensorBoard; auto: in 1 % of the time, the last and the results in 10 % each."""
    threads: int | None = None
    """CPU threads of each rank. Default: as the run began; else OMP_NUM_THREADS, or the cores it may use."""
    compile: bool = False
    """torch.compile the model, once for all lengths; takes a C++ compiler and about a minute at the start."""

    def validate(self) -> None:
        """Raise ValueError, naming the key, for a setting that no training can have."""
        for name in ("epochs", "global_batch_size", "log_every", "validate_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("max_steps", "micro_batch_size", "checkpoint_every", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"train.{name} must be at least 1, not {getattr(self, name)}")
        if (self.threads or 1) > MOST_THREADS:
            raise ValueError(f"train.threads must be at most {MOST_THREADS}, not {self.threads}")
        if self.skip_budget < 0 or not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise ValueError(
                "train.skip_budget must not be negative, and train.timeout must be above 0 and at most "
                f"{LONGEST_TIMEOUT:.0e} seconds"
            )
