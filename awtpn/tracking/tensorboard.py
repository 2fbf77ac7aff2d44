"""A run's TensorBoard: what is shown where.

    loss/ optim/            each optimizer step
    data/ system/           every train.log_every steps
    val/ val_f1/            figures, reliability weights and pictures of each validation
    prototypes/             how far they lie apart and move
    results/                of the best checkpoint, once, at the end

Pictures take their time, so validations are drawn as long as all together take 1 % of the run's; the last one
and the results may take more. Embeddings go to the projector, settings to HParams and Text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
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
from awtpn.metrics.classification import SUMMARY
from awtpn.tracking import figures as pictures
from awtpn.tracking.projector import write_projector
from awtpn.tracking.snapshot import BUCKET, Snapshot
from shards import FeatureStream
from shards.safe_io import markdown
from shards.safe_io.printable import printable, printable_lines

Pictures = Literal["auto", "always", "never"]

FOLDER = "tensorboard"
# The tag of each value of a metrics.jsonl line.
STEP_TAGS = {
    "loss": "loss/total",
    **{term: f"loss/{term}" for term in TERMS},
    "lr": "optim/lr",
    "grad_norm": "optim/grad_norm",
    "skipped": "optim/skipped",
}
# Settings that runs are told apart by. TensorBoard shows five at first: those that are said to differ.
VARIED = ("data.train", "model.awm", "model.modalities", "optim.lr", "run.seed")
# By which runs are compared in HParams.
COMPARED = ("results/test_w-F1", "results/test_w-ACC", "results/test_UA", "results/val_w-F1", "val/w-F1")
# What pictures of each group are titled.
TITLES = {
    "val/": "validation",
    "results/val_": "validation, best checkpoint",
    "results/test_": "test, best checkpoint",
}
DRAWING_SHARE, LAST_DRAWING_SHARE = 0.01, 0.1  # of a run's time
FIRST_DRAWING_S = 1.0  # as long as nothing is known; matplotlib is imported then


class Board:
    """The event file of one start of a run, and what lies beside it; for the main rank alone.

    Args:
        run_dir: the run folder.
        resumed_step: steps already done; points after it, of an interrupted run, are dropped. None keeps all.
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
        self.table: NDArray[np.float32] | None = None  # prototypes when last looked at

    def close(self) -> None:
        self.writer.close()

    def scalars(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Figures by tag, as one event: a fraction of what a call for each costs."""
        values = [
            Summary.Value(tag=tag, simple_value=float(value))
            for tag, value in figures.items()
            if value is not None
        ]
        self.events.add_summary(Summary(value=values), step)

    def settings(
        self,
        step: int,
        config: Config,
        train: FeatureStream,
        about: Mapping[str, Any],
        table: NDArray[np.float32],
    ) -> None:
        """What the run is, where it begins or goes on: the Text tab, HParams, and the prototypes' start."""
        self.table = table
        data = {
            "url": train.url,
            "split": train.split,
            "utterances": train.num_utterances,
            # The main rank alone comes here: it must not be the one that reads all indexes, and may fail.
            "classes": dict(zip(train.classes, train.class_counts(check=False).tolist(), strict=True)),
            "modalities": {m: f"{x.dim} x {x.dtype}" for m, x in train.modalities.items()},
            "provenance": train.manifest.provenance,
        }
        self.writer.add_text("run/config", _code(dump_yaml(config)), step)
        self.writer.add_text("run/data", _code(json.dumps(data, indent=2)), step)
        self.writer.add_text("run/environment", markdown.table(["", ""], list(flatten(about).items())), step)
        for summary in comparison(flatten(dump(config))):
            self.events.add_summary(summary, 0)

    # --- Validations -----------------------------------------------------------------------------

    def wants_pictures(self, pictures: Pictures, last: bool) -> bool:
        """The coming validation shall be drawn, by what drawing took so far in this start of the run."""
        elapsed = time.perf_counter() - self.started
        return wants_pictures(pictures, elapsed, last, self.drawing_s + self.last_drawing_s)

    def validation(self, step: int, figures: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Figures, weights and prototypes of a validation; pictures where the snapshot has what they show."""
        per_class = {f"val_f1/{printable(name)}": of["f1"] for name, of in figures["per_class"].items()}
        self.scalars(step, {f"val/{name}": figures[name] for name in (*SUMMARY, "cross-entropy")} | per_class)
        for modality, counts in snapshot.reliability.items():
            self._histogram(f"val/reliability_{modality}", counts, step)
        classes, before = figures["labels"], self.table
        self.scalars(step, prototype_figures(snapshot.prototypes, before, len(classes)))
        self.table = snapshot.prototypes
        if snapshot.embeddings is not None:
            start = time.perf_counter()
            self._draw("val/", step, figures, snapshot)
            title = f"distances between prototypes, step {step}"
            distances = pictures.prototype_map(snapshot.prototypes, classes, before, title)
            self._picture("prototypes/distances", distances, step)
            write_projector(self.folder, "last", snapshot.embeddings, classes)
            self.last_drawing_s = time.perf_counter() - start
            self.drawing_s += self.last_drawing_s
        self.writer.flush()

    def results(self, results: Mapping[str, Any], snapshots: Mapping[str, Snapshot]) -> None:
        """Figures and pictures of the best checkpoint, and the end of the run for HParams."""
        step = results["best_step"]
        for role, snapshot in snapshots.items():
            figures = results[role]
            self.scalars(step, {f"results/{role}_{name}": figures[name] for name in SUMMARY})
            if snapshot.embeddings is not None:
                self._draw(f"results/{role}_", step, figures, snapshot)
                write_projector(self.folder, f"best_{role}", snapshot.embeddings, figures["labels"])
        self.events.add_summary(hparams({}, {})[2], 0)

    def _draw(self, prefix: str, step: int, figures: Mapping[str, Any], snapshot: Snapshot) -> None:
        classes, confusion = figures["labels"], np.array(figures["confusion_matrix"])
        of = f"{TITLES[prefix]}, step {step}"
        title = f"{of}: w-F1 {100 * figures['w-F1']:.1f} %, {figures['utterances']} utterances"
        self._picture(f"{prefix}confusion", pictures.confusion_matrix(confusion, classes, title), step)
        title = f"{of}: reliability weights over time"
        weights = pictures.weights_over_time(snapshot.examples, classes, title)
        self._picture(f"{prefix}weights_over_time", weights, step)

    def _picture(self, tag: str, picture: pictures.Picture, step: int) -> None:
        self.writer.add_image(tag, picture, step, dataformats="HWC")

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


def wants_pictures(
    pictures: Pictures, elapsed_s: float, last: bool, drawing_s: float = FIRST_DRAWING_S
) -> bool:
    """Pictures shall be drawn after `elapsed_s` of a run, which would then have spent `drawing_s` on them.

    Args:
        pictures: `train.pictures`.
        last: there will be no later ones.
    """
    share = LAST_DRAWING_SHARE if last else DRAWING_SHARE
    return pictures == "always" or (pictures == "auto" and drawing_s <= share * elapsed_s)


def prototype_figures(
    table: NDArray[np.float32], before: NDArray[np.float32] | None, classes: int
) -> dict[str, float]:
    """Euclidean lengths that tell how the prototypes [C*K, D] fare, by tag.

    `nearest_class` is the smallest distance between prototypes of two classes: towards 0 they collapse.
    """
    distance = pictures.distances_between(table)
    of_class = np.repeat(np.arange(classes), len(table) // classes)
    others = distance[of_class[:, None] != of_class]
    figures = {"prototypes/norm": float(np.linalg.norm(table, axis=1).mean())}
    if len(others):
        figures |= {
            "prototypes/nearest_class": float(others.min()),
            "prototypes/distance_of_classes": float(others.mean()),
        }
    if before is not None:
        figures["prototypes/movement"] = float(np.linalg.norm(table - before, axis=1).mean())
    return figures


def comparison(settings: Mapping[str, Any]) -> tuple[Summary, Summary]:
    """What HParams takes: the columns, those in VARIED first, and this run's row; true and false as words."""
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in settings.items()}
    experiment, start, _ = hparams(words, dict.fromkeys(COMPARED, 0.0))
    plugin = experiment.value[0].metadata.plugin_data
    content = HParamsPluginData.FromString(plugin.content)
    for column in content.experiment.hparam_infos:
        column.differs = column.name in VARIED
    plugin.content = content.SerializeToString()
    return experiment, start


def _code(text: str) -> str:
    # Indented, it is shown as it is. Of a name's line ends none may begin a line that is not.
    return "".join(f"    {line}\n" for line in printable_lines(text).splitlines())
