"""What a run writes to TensorBoard, and under which tags.

    loss/ optim/            each optimizer step
    data/ system/           every train.log_every steps
    epoch/                  mean losses of each epoch's steps, since the run began or resumed
    val/ val_f1/            metrics, reliability weights and figures of each validation
    prototypes/             distances between prototypes, and how far they moved
    results/                metrics and figures of the best checkpoint, once, at the end

Drawing figures takes at most 1 % of the run time; 10 % for the last validation and the final results.
Embeddings go to the projector, settings to HParams and Text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
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
from awtpn.metrics.summary import headlines_of, task_type_of
from awtpn.tracking import figures
from awtpn.tracking.projector import write_projector
from awtpn.tracking.snapshot import BUCKET, Snapshot
from shards import FeatureStream
from shards.safe_io import markdown
from shards.safe_io.printable import printable, printable_lines

FigureMode = Literal["auto", "always", "never"]  # the values of train.pictures

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
# Metrics by which HParams compares runs.
COMPARED = ("results/test_w-F1", "results/test_w-ACC", "results/test_UA", "results/val_w-F1", "val/w-F1")
# Titles of the figures, by the prefix of their tags.
TITLES = {
    "val/": "validation",
    "results/val_": "validation, best checkpoint",
    "results/test_": "test, best checkpoint",
}
DRAWING_SHARE, LAST_DRAWING_SHARE = 0.01, 0.1  # of a run's time
FIRST_DRAWING_S = 1.0  # estimate for the first drawing, which imports matplotlib


class TensorBoardWriter:
    """Writes one event file, and the projector's files beside it. Only the main rank makes one.

    Args:
        run_dir: the run folder.
        resumed_step: steps already done. TensorBoard then hides later points, which an interrupted run left.
            None hides none.
        suffix: of the event file's name.
    """

    def __init__(self, run_dir: Path, resumed_step: int | None = None, suffix: str = "") -> None:
        self.folder = run_dir / FOLDER
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

    def log_scalars(self, step: int, scalars: Mapping[str, float | None]) -> None:
        """Write scalars by tag as one event, which is much faster than `add_scalar` for each."""
        values = [
            Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in scalars.items()
            if value is not None
        ]
        self.events.add_summary(Summary(value=values), step)

    def log_settings(
        self,
        step: int,
        config: Config,
        train: FeatureStream,
        environment: Mapping[str, Any],
        prototypes: NDArray[np.float32],
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
            "classes": dict(zip(train.classes, train.class_counts(check=False).tolist(), strict=True)),
            "modalities": {m: f"{x.dim} x {x.dtype}" for m, x in train.modalities.items()},
            "provenance": train.manifest.provenance,
        }
        self.writer.add_text("run/config", _code(dump_yaml(config)), step)
        self.writer.add_text("run/data", _code(json.dumps(data, indent=2)), step)
        self.writer.add_text(
            "run/environment", markdown.table(["", ""], list(flatten(environment).items())), step
        )
        settings = {"model.modalities": ", ".join(config.model.modalities)} | flatten(dump(config))
        for summary in hparams_summaries(settings):
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
        states, before = snapshot.task.states, self.prototypes
        self.log_scalars(step, prototype_scalars(snapshot.prototypes, before, len(states)))
        self.prototypes = snapshot.prototypes
        if snapshot.embeddings is not None:
            start = time.perf_counter()
            self._draw("val/", step, metrics, snapshot)
            title = f"distances between prototypes, step {step}"
            distances = figures.prototype_map(snapshot.prototypes, states, before, title)
            self._add_image("prototypes/distances", distances, step)
            write_projector(self.folder, "last", snapshot.embeddings, states)
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
            if snapshot.embeddings is not None:
                self._draw(f"results/{role}_", step, metrics, snapshot)
                write_projector(self.folder, f"best_{role}", snapshot.embeddings, metrics["labels"])
        self.events.add_summary(hparams({}, {})[2], 0)

    def _draw(self, prefix: str, step: int, metrics: Mapping[str, Any], snapshot: Snapshot) -> None:
        if task_type_of(metrics) != "classification":
            return
        classes, confusion = metrics["labels"], np.array(metrics["confusion_matrix"])
        of = f"{TITLES[prefix]}, step {step}"
        title = f"{of}: w-F1 {100 * metrics['w-F1']:.1f} %, {metrics['utterances']} utterances"
        self._add_image(f"{prefix}confusion", figures.confusion_matrix(confusion, classes, title), step)
        title = f"{of}: reliability weights over time"
        weights = figures.weights_over_time(snapshot.examples, classes, title)
        self._add_image(f"{prefix}weights_over_time", weights, step)

    def _add_image(self, tag: str, image: figures.Image, step: int) -> None:
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
    prototypes: NDArray[np.float32], before: NDArray[np.float32] | None, classes: int
) -> dict[str, float]:
    """Mean norm of the prototypes [C*K, D], Euclidean distances between classes, and movement, by tag.

    `nearest_class` is the smallest distance between prototypes of two classes. As it nears 0 they collapse.
    """
    distance = figures.distances_between(prototypes)
    of_class = np.repeat(np.arange(classes), len(prototypes) // classes)
    others = distance[of_class[:, None] != of_class]
    scalars = {"prototypes/norm": float(np.linalg.norm(prototypes, axis=1).mean())}
    if len(others):
        scalars |= {
            "prototypes/nearest_class": float(others.min()),
            "prototypes/distance_of_classes": float(others.mean()),
        }
    if before is not None:
        scalars["prototypes/movement"] = float(np.linalg.norm(prototypes - before, axis=1).mean())
    return scalars


def hparams_summaries(settings: Mapping[str, Any]) -> tuple[Summary, Summary]:
    """Summaries for HParams: the columns, with VARIED marked as differing, and this run's row."""
    # true and false are written as words, as in config.yaml.
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in settings.items()}
    experiment, start, _ = hparams(words, dict.fromkeys(COMPARED, 0.0))
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in VARIED
    plugin.content = content.SerializeToString()
    return experiment, start


def _code(text: str) -> str:
    # Markdown shows indented lines as they are. printable_lines keeps names from starting lines of their own.
    return "".join(f"    {line}\n" for line in printable_lines(text).splitlines())
