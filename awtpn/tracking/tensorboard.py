"""What a run writes to TensorBoard, and under which tags.

    loss/ optim/            each optimizer step
    grad_norm/ weight_norm/ of the model's parts, every track.norms_every steps
    data/ system/           every train.log_every steps
    system/checkpoint_s     seconds that a checkpoint held up the training
    epoch/                  mean losses of each epoch's steps, since the run began or resumed
    val/                    metrics, reliability weights and figures of each validation
    val_f1/ val_ccc/        F1 of each class or label, CCC of each dimension
    prototypes/             distances between prototypes, and how far they moved; a baseline has none
    results/                metrics and figures of the best checkpoint, once, at the end

Drawing figures takes at most 1 % of the run time; 10 % for the last validation and the final results.
Embeddings go to the projector, settings to HParams and Text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from awtpn.config.schema import Config, dump, dump_yaml, flatten
from awtpn.learning.settings import TERMS
from awtpn.metrics.summary import format_metric, headlines_of
from awtpn.model.task import Task
from awtpn.tracking import figures, target_figures
from awtpn.tracking.canvas import Image
from awtpn.tracking.projector import write_projector
from awtpn.tracking.snapshot import BUCKET, Snapshot
from shards import FeatureStream
from shards.safe_io import markdown
from shards.safe_io.printable import printable, printable_lines

FigureMode = Literal["auto", "always", "never"]  # the values of train.pictures

# Gets a step and its scalars by tag.
ScalarSink = Callable[[int, Mapping[str, float | None]], None]

FOLDER = "tensorboard"
# The tag of each value of a metrics.jsonl line.
STEP_TAGS = {
    "loss": "loss/total",
    **{term: f"loss/{term}" for term in TERMS},
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "skipped": "optim/skipped",
}
# TensorBoard's HParams tab first shows five columns: those marked as differing between runs. We mark these.
VARIED = ("data.train", "model.awm", "model.modalities", "optim.lr", "run.seed")
# Metrics by which HParams compares runs, by task type; see `compared_metrics`.
COMPARED = {
    "classification": (
        "results/test_w-F1",
        "results/test_w-ACC",
        "results/test_UA",
        "results/val_w-F1",
        "val/w-F1",
    ),
    "regression": (
        "results/test_MAE",
        "results/test_Corr",
        "results/test_CCC",
        "results/val_MAE",
        "val/MAE",
    ),
    "multilabel": ("results/test_F1", "results/test_WA", "results/test_mAP", "results/val_F1", "val/F1"),
}
# Titles of the figures, by the prefix of their tags.
TITLES = {
    "val/": "validation",
    "results/val_": "validation, best checkpoint",
    "results/test_": "test, best checkpoint",
}
DRAWING_SHARE, LAST_DRAWING_SHARE = 0.01, 0.1  # of a run's time
FIRST_DRAWING_S = 1.0  # estimate for the first drawing, which imports matplotlib


def ignore_scalars(step: int, scalars: Mapping[str, float | None]) -> None:
    """A ScalarSink that does nothing."""


class TensorBoardWriter:
    """Writes one event file, and the projector's files beside it. Only the main rank makes one.

    Args:
        run_dir: the run folder.
        resumed_step: steps already done. TensorBoard then hides later points, which an interrupted run left.
            None hides none.
        suffix: of the event file's name.
        also: gets every step and its scalars, too.
        largest: in bytes; `begin_new_file_if_large` begins a new event file when one is larger. None: never.
    """

    def __init__(
        self,
        run_dir: Path,
        resumed_step: int | None = None,
        suffix: str = "",
        also: ScalarSink = ignore_scalars,
        largest: int | None = None,
    ) -> None:
        self.also = also
        self.folder, self.suffix, self.largest = run_dir / FOLDER, suffix, largest
        purge = None if resumed_step is None else resumed_step + 1
        self.writer = SummaryWriter(
            str(self.folder), purge_step=purge, max_queue=1_000, flush_secs=10, filename_suffix=suffix
        )
        self.events: Any = self.writer.file_writer
        self.started = time.perf_counter()
        self.drawing_s, self.last_drawing_s = 0.0, FIRST_DRAWING_S
        self.prototypes: NDArray[np.float32] | None = None  # at the last validation

    def close(self) -> None:
        self.writer.close()

    def begin_new_file_if_large(self) -> None:
        """Begin a new event file where the last is larger than `largest`: files at a URL are sent whole."""
        if self.largest is None:
            return
        files = [path.stat() for path in self.folder.glob("events.out.tfevents.*")]
        if max(files, key=lambda found: found.st_mtime_ns).st_size < self.largest:
            return
        self.writer.close()
        self.writer = SummaryWriter(
            str(self.folder), max_queue=1_000, flush_secs=10, filename_suffix=self.suffix
        )
        self.events = self.writer.file_writer

    def log_scalars(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Write scalars by tag as one event, which is much faster than `add_scalar` for each."""
        values = [
            Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in scalars.items()
            if value is not None
        ]
        if values:
            self.events.add_summary(Summary(value=values), step)
            self.also(step, scalars)

    def log_settings(
        self,
        step: int,
        config: Config,
        train: FeatureStream,
        environment: Mapping[str, Any],
        prototypes: NDArray[np.float32] | None,
    ) -> None:
        """Write configuration, data and environment to Text and HParams, when a run starts or resumes.

        `prototypes` [C*K, D] are those at this step, to measure later movement from.
        """
        self.prototypes = prototypes
        data = {
            "url": train.url,
            "split": train.split,
            "utterances": train.num_utterances,
            # Only the main rank runs this: check=True would have it read all indexes, and could fail here.
            "target": asdict(train.target),
            **(
                {"classes": dict(zip(train.classes, train.class_counts(check=False).tolist(), strict=True))}
                if train.target.type == "classification"
                else {"without_target": train.without_target}
            ),
            "modalities": {m: f"{x.dim} x {x.dtype}" for m, x in train.modalities.items()},
            "provenance": train.manifest.provenance,
        }
        self.writer.add_text("run/config", _code(dump_yaml(config)), step)
        self.writer.add_text("run/data", _code(json.dumps(data, indent=2)), step)
        self.writer.add_text(
            "run/environment", markdown.table(["", ""], list(flatten(environment).items())), step
        )
        settings = {"model.modalities": ", ".join(config.model.modalities)} | flatten(dump(config))
        compared = compared_metrics(train.target.type, config.train.best_by)
        for summary in hparams_summaries(settings, compared):
            self.events.add_summary(summary, 0)

    # --- Validations -----------------------------------------------------------------------------

    def wants_figures(self, mode: FigureMode, last: bool) -> bool:
        """Whether to draw the next validation, given the time that drawing took since the start."""
        elapsed = time.perf_counter() - self.started
        return wants_figures(mode, elapsed, last, self.drawing_s + self.last_drawing_s)

    def log_validation(self, step: int, metrics: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Write metrics, reliability weights and prototypes, and figures if the snapshot has their data."""
        self.log_scalars(step, validation_scalars(metrics))
        for modality, counts in snapshot.reliability.items():
            self._histogram(f"val/reliability_{modality}", counts, step)
        task, before = snapshot.task, self.prototypes
        if snapshot.prototypes is not None:
            self.log_scalars(step, prototype_scalars(snapshot.prototypes, before, task))
            self.prototypes = snapshot.prototypes
        if snapshot.has_figures:
            start = time.perf_counter()
            self._draw("val/", step, metrics, snapshot)
            if snapshot.prototypes is not None and snapshot.embeddings is not None:
                title = f"distances between prototypes, step {step}"
                groups = task.group_sizes if task.type != "classification" else ()
                distances = figures.prototype_map(snapshot.prototypes, task.states, before, title, groups)
                self._add_image("prototypes/distances", distances, step)
                write_projector(self.folder, "last", snapshot.embeddings, task.states)
            self.last_drawing_s = time.perf_counter() - start
            self.drawing_s += self.last_drawing_s
        self.writer.flush()

    def log_results(self, results: Mapping[str, Any], snapshots: Mapping[str, Snapshot]) -> None:
        """Write metrics and figures of the best checkpoint, and the end of the run for HParams."""
        step = results["best_step"]
        for role, snapshot in snapshots.items():
            metrics = results[role]
            names = headlines_of(metrics)
            self.log_scalars(step, {f"results/{role}_{name}": metrics[name] for name in names})
            if snapshot.has_figures:
                self._draw(f"results/{role}_", step, metrics, snapshot)
            if snapshot.embeddings is not None:
                write_projector(self.folder, f"best_{role}", snapshot.embeddings, snapshot.task.states)
        self.events.add_summary(hparams({}, {})[2], 0)

    def _draw(self, prefix: str, step: int, metrics: Mapping[str, Any], snapshot: Snapshot) -> None:
        of, task = f"{TITLES[prefix]}, step {step}", snapshot.task
        utterances = f"{metrics['utterances']} utterances"
        if task.type == "classification":
            title = f"{of}: w-F1 {100 * metrics['w-F1']:.1f} %, {utterances}"
            confusion = np.array(metrics["confusion_matrix"])
            self._add_image(
                f"{prefix}confusion", figures.confusion_matrix(confusion, metrics["labels"], title), step
            )
        elif task.type == "multilabel":
            title = f"{of}: F1 {_percent('F1', metrics)}, WA {_percent('WA', metrics)}, {utterances}"
            self._add_image(f"{prefix}labels", target_figures.label_bars(metrics["per_label"], title), step)
        elif snapshot.values is not None:
            title = f"{of}: MAE {format_metric('MAE', metrics['MAE'])}, {utterances}"
            if (drawn := len(snapshot.values.truth)) < metrics["utterances"]:
                title += f", {drawn} drawn"
            assert task.ranges is not None
            scatter = target_figures.value_scatter(
                snapshot.values, metrics["per_dimension"], task.ranges, title
            )
            self._add_image(f"{prefix}scatter", scatter, step)
        if not any(example.weights for example in snapshot.examples):
            return  # a baseline has none
        title = f"{of}: reliability weights over time"
        heading = ", ".join(task.names) if task.type == "regression" else ""
        weights = figures.weights_over_time(snapshot.examples, title, heading)
        self._add_image(f"{prefix}weights_over_time", weights, step)

    def _add_image(self, tag: str, image: Image, step: int) -> None:
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def _histogram(self, tag: str, counts: NDArray[np.int64], step: int) -> None:
        """Reliability weights as multiples of the uniform weight, from their counts per bucket."""
        if not counts.any():
            return
        used = int(np.flatnonzero(counts)[-1]) + 1
        middles = BUCKET * np.arange(used)
        limits = middles + BUCKET / 2
        self.writer.add_histogram_raw(
            tag,
            min=0.0,
            max=float(limits[-1]),
            num=int(counts.sum()),
            sum=float(counts[:used] @ middles),
            sum_squares=float(counts[:used] @ middles**2),
            bucket_limits=limits.tolist(),
            bucket_counts=counts[:used].tolist(),
            global_step=step,
        )


def wants_figures(mode: FigureMode, elapsed_s: float, last: bool, drawing_s: float = FIRST_DRAWING_S) -> bool:
    """Whether to draw figures now.

    Args:
        mode: `train.pictures`.
        elapsed_s: run time so far.
        last: no later validation follows.
        drawing_s: time that all drawing would have taken after this one.
    """
    share = LAST_DRAWING_SHARE if last else DRAWING_SHARE
    return mode == "always" or (mode == "auto" and drawing_s <= share * elapsed_s)


def validation_scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a validation by tag; those that are not defined are left out."""
    names = [*headlines_of(metrics), *(["cross-entropy"] if "cross-entropy" in metrics else [])]
    scalars = {f"val/{name}": metrics[name] for name in names}
    for part, key in (("per_class", "f1"), ("per_dimension", "CCC"), ("per_label", "F1")):
        for name, of in metrics.get(part, {}).items():
            scalars[f"val_{key.lower()}/{printable(name)}"] = of[key]
    return {tag: value for tag, value in scalars.items() if value is not None}


def prototype_scalars(
    prototypes: NDArray[np.float32], before: NDArray[np.float32] | None, task: Task
) -> dict[str, float]:
    """Mean norm of the prototypes [S*K, D], Euclidean distances between states, and movement, by tag.

    `nearest_class` is the smallest distance between prototypes of two classes. As it nears 0 they collapse.
    In other tasks `nearest_state` is that of two states of the same label or dimension.
    """
    distance, groups = figures.distances_between(prototypes), task.group_sizes
    per_state = len(prototypes) // sum(groups)
    of_state = np.repeat(np.arange(sum(groups)), per_state)
    of_group = np.repeat(np.arange(len(groups)), per_state * np.array(groups))
    others = distance[(of_state[:, None] != of_state) & (of_group[:, None] == of_group)]
    one, many = ("class", "classes") if task.type == "classification" else ("state", "states")
    scalars = {"prototypes/norm": float(np.linalg.norm(prototypes, axis=1).mean())}
    if len(others):
        scalars |= {
            f"prototypes/nearest_{one}": float(others.min()),
            f"prototypes/distance_of_{many}": float(others.mean()),
        }
    if before is not None:
        scalars["prototypes/movement"] = float(np.linalg.norm(prototypes - before, axis=1).mean())
    return scalars


def compared_metrics(task_type: str, best_by: str | None) -> tuple[str, ...]:
    """The tags by which HParams compares runs of a task: with the metric of `train.best_by`, if it is set."""
    tags = COMPARED[task_type]
    further = (f"results/test_{best_by}", f"val/{best_by}") if best_by else ()
    return (*tags, *(tag for tag in further if tag not in tags))


def hparams_summaries(settings: Mapping[str, Any], compared: Sequence[str]) -> tuple[Summary, Summary]:
    """Summaries for HParams: the columns, with VARIED marked as differing, and this run's row.

    Args:
        compared: tags of metrics.
    """
    # true and false are written as words, as in config.yaml.
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in settings.items()}
    experiment, start, _ = hparams(words, dict.fromkeys(compared, 0.0))
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in VARIED
    plugin.content = content.SerializeToString()
    return experiment, start


def _percent(name: str, metrics: Mapping[str, Any]) -> str:
    """A metric in per cent with one decimal, as titles have it."""
    return "undefined" if metrics[name] is None else f"{100 * metrics[name]:.1f} %"


def _code(text: str) -> str:
    # Markdown shows indented lines as they are. printable_lines keeps names from starting lines of their own.
    return "".join(f"    {line}\n" for line in printable_lines(text).splitlines())
