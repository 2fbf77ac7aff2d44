"""Values and labels in event files, in the projector, and in what a run prints; metrics may be undefined."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ALONE, DIMS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from awtpn.config.schema import Config
from awtpn.config.settings import DataConfig
from awtpn.metrics.multilabel import summarize_labels
from awtpn.metrics.regression import summarize_values
from awtpn.metrics.summary import DEFAULT_BEST
from awtpn.model.task import Task
from awtpn.run.position import Position
from awtpn.tracking.captions import caption, color_words, predicted_words, truth_words
from awtpn.tracking.monitor import Monitor, log_results, print_results
from awtpn.tracking.snapshot import BUCKETS, Embeddings, Example, Snapshot, ValuePairs
from awtpn.tracking.tensorboard import COMPARED, compared_metrics
from shards import FeatureStream

VALUES = Task("regression", ["valence", "arousal"], [[-3, 3], [1, 5]], levels=3)
SENTIMENT = Task("regression", ["sentiment"], [[-3, 3]], levels=7)
LABELS = Task("multilabel", ["happy", "sad", "fear"])
TASKS = [VALUES, SENTIMENT, LABELS]
IMAGES = {"regression": "scatter", "multilabel": "labels"}


def of(task: Task, utterances: int = 40, degenerate: bool = False) -> tuple[dict[str, Any], Snapshot]:
    """The figures of a validation, and its snapshot; degenerate: some of its metrics are not defined."""
    rng = np.random.default_rng(4)
    shape = (utterances, len(task.names))
    if task.type == "regression":
        low, high = np.array(task.ranges, np.float64).T
        truth = rng.uniform(low, high, shape)
        predicted = truth * 0.5 + rng.normal(0, 0.2, shape)
        if degenerate:
            truth[:, -1], predicted[:] = np.nan, 0.25
        figures = summarize_values(truth, predicted, task.names, task.ranges)
    else:
        truth = (rng.random(shape) < 0.4).astype(np.float64)
        predicted = np.clip(0.5 * truth + 0.5 * rng.random(shape), 0, 1)
        if degenerate:
            truth[:, 0], truth[:, 1:] = 0.0, np.nan
        figures = summarize_labels(truth, predicted, task.names) | {"cross-entropy": 0.5}
    prototypes = rng.normal(size=(len(task.states), 4)).astype(np.float32)
    weights = {m: np.full(4, 0.25, np.float32) for m in DIMS}
    shown = range(min(utterances, 6))
    counts = np.zeros(BUCKETS, np.int64)
    counts[10] = 4 * utterances
    return figures, Snapshot(
        task=task,
        reliability=dict.fromkeys(DIMS, counts),
        prototypes=prototypes,
        examples=[Example(f"u{i}", caption(truth[i], predicted[i], task), weights) for i in shown],
        embeddings=Embeddings(
            key=[f"u{i}" for i in range(utterances)],
            label=[truth_words(row, task) for row in truth],
            predicted=[predicted_words(row, task) for row in predicted],
            shown_as=color_words(truth, task),
            vectors=rng.normal(size=(utterances, 4)).astype(np.float32),
            prototypes=prototypes,
        ),
        values=ValuePairs(truth, predicted) if task.type == "regression" else None,
    )


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    return events.Reload()


@pytest.fixture(autouse=True)
def one_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Event files are read in the order of their names, which end with this counter: 10 is before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.names[0])
def test_a_validation_is_written_as_its_task_needs(task: Task, tmp_path: Path) -> None:
    figures, snapshot = of(task)
    monitor = Monitor(tmp_path, is_main=True, resumed_step=0, total_steps=3)
    monitor.log_validation(3, figures, snapshot)
    monitor.close()
    log_results(tmp_path, {"best_step": 3, "test": figures}, {"test": snapshot})
    seen = read(tmp_path)
    scalars = set(seen.Tags()["scalars"])
    part, metric = ("per_dimension", "CCC") if task.type == "regression" else ("per_label", "F1")
    for name in task.names:
        [event] = seen.Scalars(f"val_{metric.lower()}/{name}")
        assert event.value == pytest.approx(figures[part][name][metric])
    headlines = [name for name in figures if isinstance(figures[name], float) and f"val/{name}" in scalars]
    assert {"MAE", "Corr", "CCC"} <= {*headlines} or {"F1", "WA", "mAP", "cross-entropy"} <= {*headlines}
    assert ("Acc-7" in headlines) == (task == SENTIMENT)
    for name in headlines:
        assert seen.Scalars(f"val/{name}")[0].value == pytest.approx(figures[name])
        if name != "cross-entropy":
            assert seen.Scalars(f"results/test_{name}")[0].value == pytest.approx(figures[name])
    assert set(COMPARED[task.type][:3]) <= scalars
    assert COMPARED[task.type][-1] in scalars
    assert {"prototypes/nearest_state", "prototypes/distance_of_states"} <= scalars
    main = IMAGES[task.type]
    assert set(seen.Tags()["images"]) == {
        f"val/{main}",
        "val/weights_over_time",
        "prototypes/distances",
        f"results/test_{main}",
        "results/test_weights_over_time",
    }
    for tag in seen.Tags()["images"]:
        [image] = seen.Images(tag)
        assert image.step == 3
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert image.width > 400


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.names[0])
def test_the_projector_names_utterances_and_states(task: Task, tmp_path: Path) -> None:
    figures, snapshot = of(task, utterances=5)
    log_results(tmp_path, {"best_step": 3, "val": figures}, {"val": snapshot})
    lines = (tmp_path / "tensorboard" / "projector" / "best_val.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines[1:]]
    assert [row[3] for row in rows] == ["utterance"] * 5 + ["prototype"] * len(task.states)
    assert snapshot.embeddings is not None
    assert [row[1] for row in rows[:5]] == snapshot.embeddings.label
    assert [row[4] for row in rows[:5]] == snapshot.embeddings.shown_as
    assert [row[1] for row in rows[5:]] == task.states
    assert rows[5][0] == f"prototype 1 of {task.states[0]}"
    vectors = np.fromfile(tmp_path / "tensorboard" / "projector" / "best_val.bytes", "<f4")
    assert vectors.reshape(len(rows), 4)[5:].tolist() == snapshot.prototypes.tolist()


@pytest.mark.parametrize("utterances", [1, 30])
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.names[0])
def test_what_is_undefined_stops_nothing(
    task: Task, utterances: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    figures, snapshot = of(task, utterances, degenerate=True)
    assert any(value is None for value in figures.values())
    monitor = Monitor(tmp_path, is_main=True, resumed_step=0, total_steps=3)
    monitor.log_validation(3, figures, snapshot)
    monitor.log_epoch(
        Position(3, best_by="MAE" if task.type == "regression" else "F1"), 1, figures, True, 1.0
    )
    monitor.close()
    results = {"best_step": 3, "step": 3, "test": figures | {"reliability_auroc": {}}}
    log_results(tmp_path, results, {"test": snapshot})
    print_results(tmp_path, results, "")
    seen = read(tmp_path)
    assert f"results/test_{IMAGES[task.type]}" in seen.Tags()["images"]
    for tag in seen.Tags()["scalars"]:
        assert np.isfinite([event.value for event in seen.Scalars(tag)]).all(), tag
    printed = capfd.readouterr().out
    assert printed.count("undefined") >= 2, "in the line of the epoch, and in the table"
    assert "None" not in printed
    assert "nan" not in printed
    short = json.loads(printed.rsplit("results.json: ", 1)[1])
    name = "CCC" if task.type == "regression" else "WA"
    assert short["test"][name] is None


def test_a_table_is_printed_for_every_task(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for task, words in (
        (VALUES, ["MAE ", "CCC ", "dimension ", "valence ", "arousal "]),
        (SENTIMENT, ["Acc-7, %", "sentiment "]),
        (LABELS, ["WA, %", "mAP, %", "happy ", "fear "]),
    ):
        figures, _ = of(task)
        auroc = {"reliability_auroc": {"audio": 0.75}}
        best_by = DEFAULT_BEST[figures["task"]]
        print_results(tmp_path, {"best_step": 3, "step": 3, "val": figures | auroc}, "", best_by)
        printed = capfd.readouterr().out
        assert printed.startswith(f"\nval: 40 utterances, best checkpoint by the validation's {best_by}\n")
        assert [word for word in words if f"\n{word}" not in printed] == []
        assert "audio steps: AUROC 0.750" in printed


def test_a_run_without_results_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    print_results(tmp_path, {"best_step": 3, "step": 3}, "")
    assert capfd.readouterr().out.endswith(
        "results.json: no metrics, since there was nothing to validate or test on\n"
    )


@pytest.mark.parametrize(
    ("chosen", "task_type", "best_by"), [("fold", None, "CCC"), ("fold", "multilabel", None)]
)
def test_settings_name_the_target_and_the_compared_metrics(
    chosen: str, task_type: str | None, best_by: str | None, corpus: str, tmp_path: Path
) -> None:
    stream = FeatureStream(corpus, target=chosen, task=task_type)
    config = Config(data=DataConfig(train=corpus, target=chosen))
    config.train.best_by = best_by
    monitor = Monitor(tmp_path, is_main=True, resumed_step=0, total_steps=5)
    monitor.log_settings(0, config, stream, ALONE, 1, np.eye(3, 8, dtype=np.float32))
    monitor.close()
    seen = read(tmp_path)
    text = seen.Tensors("run/data/text_summary")[0].tensor_proto.string_val[0].decode()
    written = json.loads(text)
    assert written["target"] == {
        "type": task_type or "regression",
        "columns": {"fold": None},
        "missing": False,
    }
    assert written["without_target"] == 0
    assert "classes" not in written
    plugin = seen.PluginTagToContent("hparams")["_hparams_/experiment"]
    names = [info.name.tag for info in HParamsPluginData.FromString(plugin).experiment.metric_infos]
    assert set(names) == set(compared_metrics(stream.target.type, best_by))


def test_runs_are_compared_by_the_metric_of_the_best_model() -> None:
    assert compared_metrics("classification", None) == COMPARED["classification"]
    assert compared_metrics("classification", "w-F1") == COMPARED["classification"]
    assert compared_metrics("classification", "UA")[-1] == "val/UA"
    assert compared_metrics("regression", "CCC") == (*COMPARED["regression"], "val/CCC")
    assert compared_metrics("multilabel", "mAP") == (*COMPARED["multilabel"], "val/mAP")


def test_values_beyond_what_is_drawn_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, snapshot = of(SENTIMENT)
    titles = []
    scatter = "awtpn.tracking.tensorboard.target_figures.value_scatter"
    monkeypatch.setattr(scatter, lambda *args: titles.append(args[-1]) or np.zeros((2, 2, 3), np.uint8))
    for utterances in (40, 9_000):
        log_results(
            tmp_path,
            {"best_step": 3, "test": figures | {"utterances": utterances}},
            {"test": snapshot},
        )
    of_test = f"test, best checkpoint, step 3: MAE {figures['MAE']:.4f}"
    assert titles == [f"{of_test}, 40 utterances", f"{of_test}, 9000 utterances, 40 drawn"]
