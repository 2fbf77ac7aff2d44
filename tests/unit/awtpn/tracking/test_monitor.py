"""What a run leaves behind: one line per step, cut back on resume, written by the main rank alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import ALONE, CLASSES
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer

from awtpn.config.schema import Config, flatten
from awtpn.config.settings import DataConfig
from awtpn.metrics.classification import summarize
from awtpn.model.task import Task
from awtpn.run.atomic_write import write_atomically
from awtpn.run.position import Position
from awtpn.tracking import tensorboard
from awtpn.tracking.captions import Caption
from awtpn.tracking.monitor import Monitor, log_results, truncate_metrics, write_status
from awtpn.tracking.projector import write_projector
from awtpn.tracking.snapshot import BUCKETS, Embeddings, Example, Snapshot
from awtpn.tracking.tensorboard import STEP_TAGS, TensorBoardWriter, prototype_scalars
from shards import FeatureStream
from shards.safe_io.markdown import table

TASK = Task("classification", CLASSES)
METRICS = summarize(np.array([[5, 1, 0], [0, 6, 0], [2, 0, 4]]), CLASSES) | {"cross-entropy": 0.7}


def test_a_large_event_file_is_followed_by_another(tmp_path: Path) -> None:
    """TensorBoard reads them as one run; each is small enough to be sent again when it grows."""
    writer = TensorBoardWriter(tmp_path, resumed_step=0, largest=2_000)
    for step in range(1, 201):
        writer.log_scalars(step, {"loss/total": float(step)})
        if step % 10 == 0:
            writer.events.flush()
            writer.begin_new_file_if_large()
    writer.close()
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) > 3
    assert all(path.stat().st_size < 3_000 for path in files)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, 201))
    writer = TensorBoardWriter(tmp_path / "local", resumed_step=0)
    writer.begin_new_file_if_large()
    writer.close()
    assert len(list((tmp_path / "local" / "tensorboard").iterdir())) == 1


def snapshot(figures: bool = False) -> Snapshot:
    """A validation of two utterances, one without video."""
    counts = np.zeros(BUCKETS, dtype=np.int64)
    counts[[5, 10, 39]] = 3, 4, 1
    table = np.eye(3, 8, dtype=np.float32)
    audio, none = np.array([0.1, 0.7, 0.2], np.float32), np.zeros(0, np.float32)
    return Snapshot(
        task=TASK,
        reliability={"audio": counts, "video": counts * 0},
        prototypes=table,
        examples=[
            Example("u0", Caption("calm", "calm 90 %", True), {"audio": audio, "video": audio}),
            Example("u1", Caption("happy", "sad 50 %", False), {"audio": audio, "video": none}),
        ]
        if figures
        else [],
        embeddings=Embeddings(
            key=["u0", "u\t1"],
            label=["calm", "happy"],
            predicted=["calm", "sad"],
            shown_as=["calm", "happy"],
            vectors=np.arange(16, dtype=np.float32).reshape(2, 8),
            prototypes=table,
        )
        if figures
        else None,
    )


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "histograms": 0, "tensors": 0})
    return events.Reload()


def line(step: int) -> dict[str, float]:
    return {"step": step, "epoch": 0} | dict.fromkeys(STEP_TAGS, step / 10)


def test_a_torn_line_and_later_steps_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    truncate_metrics(path, 3)
    assert not path.exists(), "a fresh run has nothing to cut"
    whole = [json.dumps(line(step)) for step in range(1, 7)]
    path.write_text("\n".join(whole) + '\n{"step": 7, "lo')
    truncate_metrics(path, 100)
    assert path.read_text().splitlines() == whole
    truncate_metrics(path, 4)
    assert path.read_text().splitlines() == whole[:4]
    truncate_metrics(path, 0)
    assert path.read_text() == ""


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, is_main=False, resumed_step=0, total_steps=5)
    monitor.log_step(line(1), 32)
    monitor.flush(seconds=1.0)
    monitor.log_scalars(1, {"system/memory_gib": 1.0})
    assert not monitor.wants_figures("always", last=True)
    monitor.log_validation(1, METRICS, snapshot())
    monitor.log_epoch(Position(1), 2, METRICS, True, 1.0)
    monitor.print("nothing")
    monitor.close()
    assert not list(tmp_path.iterdir())


def test_a_resumed_run_leaves_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Files of one second and process are read in the order of their numbers as text: 10 would come before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    first = Monitor(tmp_path, is_main=True, resumed_step=0, total_steps=6)
    for step in range(1, 6):
        first.log_step(line(step), 32)
    first.log_validation(5, METRICS, snapshot(figures=True))
    first.close()
    # The checkpoint was of step 3; steps 4 and 5 are done again.
    second = Monitor(tmp_path, is_main=True, resumed_step=3, total_steps=6)
    for step in range(4, 7):
        second.log_step(line(step) | {"loss": 100.0 + step}, 32)
    second.close()
    lines = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
    assert [x["loss"] for x in lines] == [0.1, 0.2, 0.3, 104, 105, 106]

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(STEP_TAGS.values()) <= set(board.Tags()["scalars"])
    assert [(e.step, round(e.value, 4)) for e in board.Scalars("loss/total")] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
        (4, 104),
        (5, 105),
        (6, 106),
    ]
    assert not board.Images("val/confusion"), "the validation of step 5 was cut, too"


def test_some_of_many_epochs_are_printed_and_all_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = Monitor(tmp_path, is_main=True, resumed_step=0, total_steps=82)
    for epoch in range(82):
        monitor.log_step(line(epoch + 1), 32)
        validation = METRICS if epoch == 5 else None
        monitor.log_epoch(Position(epoch + 1, epoch=epoch, epoch_step=1), 82, validation, False, 1.0)
    monitor.close()
    printed = capsys.readouterr().out.splitlines()
    assert [text.partition(":")[0] for text in printed] == [
        f"epoch {number}/82" for number in sorted([6, 82, *range(4, 82, 4)])
    ]
    assert "loss 0.6000 " in printed[1], "a line tells of its own epoch"
    drawn = read(tmp_path / "tensorboard").Scalars("epoch/loss")
    assert [event.step for event in drawn] == list(range(1, 83))


def test_a_validation_stands_in_its_groups(tmp_path: Path) -> None:
    writer = TensorBoardWriter(tmp_path, resumed_step=0)
    for step in (3, 6):
        writer.log_validation(step, METRICS, snapshot(figures=step == 6))
    writer.close()
    seen = read(tmp_path / "tensorboard")
    for name in ("w-F1", "cross-entropy"):
        assert seen.Scalars(f"val/{name}")[0].value == pytest.approx(METRICS[name])
    for name in CLASSES:
        values = [event.value for event in seen.Scalars(f"val_f1/{name}")]
        assert values == pytest.approx([METRICS["per_class"][name]["f1"]] * 2)
    # An empty modality has no weights to show.
    assert seen.Tags()["histograms"] == ["val/reliability_audio"]
    histogram = seen.Histograms("val/reliability_audio")[-1].histogram_value
    assert histogram.num == 8
    shares = dict(zip(np.round(histogram.bucket_limit, 3), histogram.bucket, strict=True))
    assert {limit: n for limit, n in shares.items() if n} == {0.55: 3, 1.05: 4, 3.95: 1}
    figures = {"val/confusion", "val/weights_over_time", "prototypes/distances"}
    assert set(seen.Tags()["images"]) == figures
    assert all([event.step for event in seen.Images(tag)] == [6] for tag in figures)
    assert seen.Scalars("prototypes/nearest_class")[0].value == pytest.approx(2**0.5)
    assert [event.value for event in seen.Scalars("prototypes/movement")] == [0.0], "from the second on"


def test_prototypes_are_told_apart_by_class() -> None:
    table = np.array([[0, 0], [0, 1], [3, 0], [3, 4]], np.float32)  # two of each of two classes
    scalars = prototype_scalars(table, table + np.float32([[3, 4]]), Task("classification", ["a", "b"]))
    assert scalars["prototypes/nearest_class"] == pytest.approx(3)
    assert scalars["prototypes/distance_of_classes"] == pytest.approx((3 + 5 + 10**0.5 + 18**0.5) / 4)
    assert scalars["prototypes/movement"] == pytest.approx(5)
    assert scalars["prototypes/norm"] == pytest.approx((0 + 1 + 3 + 5) / 4)


def test_prototypes_of_one_group_are_compared() -> None:
    table = np.array([[0, 0], [0, 2], [0, 1], [5, 1]], np.float32)  # absent and present of two labels
    scalars = prototype_scalars(table, None, Task("multilabel", ["a", "b"]))
    assert scalars.keys() == {
        "prototypes/norm",
        "prototypes/nearest_state",
        "prototypes/distance_of_states",
    }
    assert scalars["prototypes/nearest_state"] == pytest.approx(2), "not 1, of other labels"
    assert scalars["prototypes/distance_of_states"] == pytest.approx((2 + 5) / 2)
    values = prototype_scalars(table, None, Task("regression", ["v"], [[0, 3]], levels=4))
    assert values["prototypes/nearest_state"] == pytest.approx(1)


def test_figures_take_their_share_of_the_time_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(tensorboard.time, "perf_counter", lambda: now[0])
    original = tensorboard.write_projector

    def slowly(*args: object) -> None:
        now[0] += 2.0
        original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tensorboard, "write_projector", slowly)
    monitor = Monitor(tmp_path, is_main=True, resumed_step=0, total_steps=600)
    assert monitor.wants_figures("always", last=False)
    assert not monitor.wants_figures("auto", last=True), "in no time there is nothing worth drawing"
    now[0] += 10.0
    assert monitor.wants_figures("auto", last=True), "the last may take a tenth of the time"
    assert not monitor.wants_figures("auto", last=False)
    assert not monitor.wants_figures("never", last=True)
    drawn = []
    for step in range(1, 601):
        now[0] += 1.0
        if wanted := monitor.wants_figures("auto", last=False):
            drawn.append(step)
        monitor.tensorboard.log_validation(step, METRICS, snapshot(figures=wanted))
    monitor.close()
    assert drawn[0] == 90, "matplotlib is imported then, which takes a second"
    assert len(drawn) == 3, "2 s each of 610 s are 1 %"


def test_the_projector_shows_the_latest_and_the_best(tmp_path: Path) -> None:
    """Also after an interrupted start: names stay listed once each."""
    for step in (1, 2):
        writer = TensorBoardWriter(tmp_path, resumed_step=step - 1)
        writer.log_validation(step, METRICS, snapshot(figures=True))
        writer.close()
    log_results(tmp_path, {"best_step": 1, "val": METRICS}, {"val": snapshot(figures=True)})
    folder = tmp_path / "tensorboard"
    listed = (folder / "projector_config.pbtxt").read_text()
    assert listed.count('tensor_name: "last"') == listed.count('tensor_name: "best_val"') == 1
    for name in ("last", "best_val"):
        vectors = np.fromfile(folder / "projector" / f"{name}.bytes", "<f4").reshape(5, 8)
        assert vectors[1].tolist() == list(range(8, 16))
        assert vectors[2:].tolist() == snapshot().prototypes.tolist()
        rows = [r.split("\t") for r in (folder / "projector" / f"{name}.tsv").read_text().splitlines()]
        assert rows[:3] == [
            ["key", "label", "predicted", "kind", "shown_as"],
            ["u0", "calm", "calm", "utterance", "calm"],
            ["u 1", "happy", "sad", "utterance", "happy"],
        ]
        assert rows[-1] == ["prototype 1 of sad", "sad", "sad", "prototype", "PROTOTYPES"]


def test_settings_are_shown_without_secrets_and_can_be_compared(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Event files are read in the order of their names, which end with this counter: 10 would come before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    config = Config(data=DataConfig(train=corpus, storage_options={"secret": "hunter2"}))
    config.data.select.train = {"fold": [0, 1]}
    stream = FeatureStream(corpus)
    monitor = Monitor(tmp_path, is_main=True, resumed_step=0, total_steps=5)
    monitor.log_settings(0, config, stream, ALONE, 1, np.eye(3, 8, dtype=np.float32))
    monitor.close()
    log_results(tmp_path, {"best_step": 4, "test": METRICS}, {"test": snapshot()})
    seen = read(tmp_path / "tensorboard")
    texts = {
        tag: seen.Tensors(f"run/{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        for tag in ("config", "data", "environment")
    }
    assert yaml.safe_load(texts["config"])["data"]["select"]["train"] == {"fold": [0, 1]}
    assert json.loads(texts["data"])["utterances"] == stream.num_utterances
    assert "| versions.torch |" in texts["environment"]
    assert "| ranks | 1 |" in texts["environment"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir() if path.is_file())
    assert b"hunter2" not in written
    plugin = seen.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(plugin["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["optim.lr"].number_value == config.optim.lr
    assert start.hparams["data.select.train.fold"].string_value == "[0, 1]"
    assert start.hparams["data.standardize"].string_value == "true"
    experiment = HParamsPluginData.FromString(plugin["_hparams_/experiment"]).experiment
    columns = {info.name: info.differs for info in experiment.hparam_infos}
    assert columns.keys() == start.hparams.keys()
    assert {name for name, differs in columns.items() if differs} == set(tensorboard.VARIED)
    assert "_hparams_/session_end_info" in plugin
    assert seen.Scalars("results/test_UA")[0].step == 4


def test_leaves_are_named_by_their_path() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": None, "e": ["x"], "f": {"g": {"h": True}}}
    assert flatten(nested) == {"a.b": 1, "e": '["x"]', "f.g.h": True}


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    write_atomically(tmp_path / "file", "new")
    write_status(tmp_path, "running", ranks=2)
    write_status(tmp_path, "failed", error="why")
    record = json.loads((tmp_path / "status.json").read_text())
    assert record["status"] == "failed"
    assert record["error"] == "why"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "status.json"], "no temporary files"


def test_words_of_data_are_text_in_tensorboard(tmp_path: Path) -> None:
    hostile = "a|b <img src=x> *c*\x1b[2J\n# forged"
    shown = str(markdown_to_safe_html(table(["", ""], [[hostile, "d"], ["e", hostile]])))
    assert shown.count("<td") == 4
    assert "<em>" not in shown
    assert "<h1>" not in shown
    assert shown.count("a|b &lt;img src=x&gt; *c*\\x1b[2J\\n# forged") == 2
    words = ["\x9bsad"]
    embeddings = Embeddings([hostile], words, words, words, *(np.zeros((1, 2), np.float32),) * 2)
    write_projector(tmp_path, "last", embeddings, ["\x9bsad"])
    rows = (tmp_path / "projector" / "last.tsv").read_text().splitlines()
    assert [len(row.split("\t")) for row in rows] == [5, 5, 5]
    assert r"\x1b[2J" in rows[1]
    assert r"\x9bsad" in rows[1]
