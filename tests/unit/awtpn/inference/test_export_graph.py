"""The network as a graph: padded it computes what the packed model does, exported for any lengths."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import DIMS, THREE_DIMS, small_model

from awtpn import AWTPN, Predictor
from awtpn.inference.export_graph import (
    ONNX_FILE,
    PROGRAM_FILE,
    PaddedAWTPN,
    check,
    lengths_to_check,
    output_names,
    pad,
    task_record,
    write_graphs,
)
from awtpn.model.task import Task


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"awm": "uniform"},
        {"prototypes_per_class": 3},
        {"modalities": ["video"]},
        {"dims": THREE_DIMS},
        {"dims": THREE_DIMS, "modalities": {"text": {"weight": 0.0}, "video": {}, "audio": {"weight": 0.0}}},
        {"dims": THREE_DIMS | {"pose": 3}},
    ],
    ids=["whole", "uniform", "three prototypes", "one modality", "three", "three with weights 0", "four"],
)
def test_padded_is_packed(settings: dict[str, Any]) -> None:
    """The eager form of the graph, on lengths from 1 to 60, with modalities missing."""
    model = small_model(dtype=torch.float32, **settings).eval()
    padded = PaddedAWTPN(model)
    check(model, lambda inputs: padded(*inputs), "padded")


TASKS = {
    "values": Task("regression", ["valence", "activation"], [[-3, 3], [1, 5]], levels=5),
    "linear": Task("regression", ["valence"], [[-30, 50]], levels=3, head="linear"),
    "labels": Task("multilabel", ["loud", "bright"]),
    "column": Task("classification", ["anna", "ben"], column="speaker"),
}


@pytest.mark.parametrize("name", TASKS)
def test_padded_is_packed_in_every_task(name: str) -> None:
    model = small_model(dtype=torch.float32, task=TASKS[name]).eval()
    padded = PaddedAWTPN(model)
    check(model, lambda inputs: padded(*inputs), "padded")
    with pytest.raises(RuntimeError, match=r"graph differs from the model by"):
        check(model, lambda inputs: [padded(*inputs)[0].sin() - 1, *padded(*inputs)[1:]], "graph")


def test_what_a_graph_tells_of_its_task() -> None:
    weights = ["audio_weights", "video_weights"]
    for name, output in (("values", "values"), ("linear", "values"), ("labels", "probabilities")):
        assert output_names(small_model(task=TASKS[name])) == [output, *weights]
    assert output_names(small_model()) == ["probabilities", *weights]
    assert task_record(small_model()) == {}, "as in earlier versions"
    assert task_record(small_model(task=TASKS["labels"])) == {
        "task": "multilabel",
        "names": '["loud", "bright"]',
    }
    assert task_record(small_model(task=TASKS["column"]))["names"] == '["anna", "ben"]'


def test_a_graph_of_values(tmp_path: Path) -> None:
    """Named outputs that are a predictor's, and the task within the file."""
    model = small_model(dtype=torch.float32, task=TASKS["values"])
    written, output = write_graphs(model, tmp_path), "values"
    told = {"task": "regression", "names": '["valence", "activation"]', "ranges": "[[-3, 3], [1, 5]]"}
    for text in written.values():
        assert "gives values, audio_weights, video_weights; task regression, names " in text
    extra = dict.fromkeys(told, "")
    program = torch.export.load(tmp_path / PROGRAM_FILE, extra_files=extra).module()
    assert extra == told
    rng = np.random.default_rng(3)
    arrays = {m: [rng.normal(size=(4, dim)), rng.normal(size=(2, dim))] for m, dim in DIMS.items()}
    inputs = [t for m, dim in DIMS.items() for t in pad(arrays[m], dim)]
    answers = Predictor(model).predict([{m: of[i] for m, of in arrays.items()} for i in range(2)])
    expected = [list((answer.values or {}).values()) for answer in answers]
    np.testing.assert_allclose(program(*inputs)[0].detach(), expected, atol=1e-5)
    if ONNX_FILE in written and importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / ONNX_FILE, providers=["CPUExecutionProvider"])
        assert session.get_modelmeta().custom_metadata_map == told
        assert [given.name for given in session.get_outputs()] == [output, "audio_weights", "video_weights"]
        names = [given.name for given in session.get_inputs()]
        given = {n: t.numpy() for n, t in zip(names, inputs, strict=True)}
        np.testing.assert_allclose(session.run([output], given)[0], expected, atol=1e-5)


@pytest.mark.parametrize("modalities", [1, 2, 3, 4])
def test_graphs_are_compared_where_modalities_are_missing(modalities: int) -> None:
    patterns = {
        tuple(of_utterance > 0) for lengths in lengths_to_check(modalities) for of_utterance in lengths.T
    }
    for i in range(modalities):
        only = tuple(m == i for m in range(modalities))
        assert {only, tuple(not x for x in only)} <= patterns
    assert (True,) * modalities in patterns
    if modalities <= 3:
        assert len(patterns) == 2**modalities


def test_a_wrong_weight_of_a_missing_modality_is_found() -> None:
    model = small_model(dtype=torch.float32, dims=THREE_DIMS)
    other = small_model(dtype=torch.float32, dims=THREE_DIMS)
    other.config.modalities["text"].weight = 0.6  # 0.5 is the default
    with pytest.raises(RuntimeError, match="differs"):
        check(model, lambda inputs: PaddedAWTPN(other)(*inputs), "graph")


def test_what_is_masked_counts_for_nothing() -> None:
    padded = PaddedAWTPN(small_model(dtype=torch.float32))
    rng = np.random.default_rng(0)
    arrays = {m: rng.normal(size=(3, dim)).astype(np.float32) for m, dim in DIMS.items()}
    clean = [t for m, dim in DIMS.items() for t in pad([arrays[m]], dim)]
    wide = [
        t
        for values, mask in zip(clean[::2], clean[1::2], strict=True)
        for t in (
            torch.cat([values, torch.full_like(values, torch.nan)], 1),
            torch.cat([mask, torch.zeros_like(mask)], 1),
        )
    ]
    probabilities, *weights = padded(*wide)
    expected, *of_steps = padded(*clean)
    torch.testing.assert_close(probabilities, expected)
    for found, known in zip(weights, of_steps, strict=True):
        torch.testing.assert_close(found, torch.cat([known, torch.zeros_like(known)], 1))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[AWTPN, Path, dict[str, str]]:
    """A model, a folder with its graphs, which were compared with it when written, and what they are."""
    model = small_model(dtype=torch.float32, prototypes_per_class=2)
    folder = tmp_path_factory.mktemp("graphs")
    return model, folder, write_graphs(model, folder)


def test_the_exported_program_takes_any_lengths(graphs: tuple[AWTPN, Path, dict[str, str]]) -> None:
    model, folder, written = graphs
    assert "takes audio, audio_mask, video, video_mask" in written[PROGRAM_FILE]
    program = torch.export.load(folder / PROGRAM_FILE).module()
    for batch, audio, video in ((1, 1, 1), (7, 33, 2)):
        inputs = [
            torch.randn(batch, audio, DIMS["audio"]),
            torch.ones(batch, audio, dtype=torch.bool),
            torch.randn(batch, video, DIMS["video"]),
            torch.ones(batch, video, dtype=torch.bool),
        ]
        for ours, theirs in zip(program(*inputs), PaddedAWTPN(model)(*inputs), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_onnx_is_named_and_computes_the_same(graphs: tuple[AWTPN, Path, dict[str, str]]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install awtpn-at-scale[onnx]")
    model, folder, written = graphs
    assert "gives probabilities, audio_weights, video_weights" in written[ONNX_FILE]
    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_inputs()] == ["audio", "audio_mask", "video", "video_mask"]
    inputs = [t for m, dim in DIMS.items() for t in pad([np.ones((9, dim), np.float32), None], dim)]
    inputs[3][1, 0] = True
    names = [given.name for given in session.get_inputs()]
    outputs = session.run(None, {name: t.numpy() for name, t in zip(names, inputs, strict=True)})
    for ours, theirs in zip(outputs, PaddedAWTPN(model)(*inputs), strict=True):
        np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)


def test_graphs_of_three_modalities(tmp_path: Path) -> None:
    """Written, they are compared with the model on utterances that lack some; then loaded again."""
    model = small_model(dtype=torch.float32, dims=THREE_DIMS, modalities=["audio", "video", "text"])
    written = write_graphs(model, tmp_path)
    assert "takes audio, audio_mask, video, video_mask, text, text_mask" in written[PROGRAM_FILE]
    rng = np.random.default_rng(2)
    arrays = {
        "audio": [rng.normal(size=(4, 6)), None],
        "video": [None, None],
        "text": [rng.normal(size=(9, 4)), rng.normal(size=(2, 4))],
    }
    inputs = [t for m, dim in model.feature_dims.items() for t in pad(arrays[m], dim)]
    answers = Predictor(model).predict([{m: of[i] for m, of in arrays.items()} for i in range(2)])
    program = torch.export.load(tmp_path / PROGRAM_FILE).module()
    results = {"torch": program(*inputs)}
    if ONNX_FILE in written and importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(tmp_path / ONNX_FILE, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        given = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
        results["onnx"] = [torch.from_numpy(output) for output in session.run(None, given)]
    for outputs in results.values():
        for i, answer in enumerate(answers):
            expected = [answer.probabilities[name] for name in model.classes]
            np.testing.assert_allclose(outputs[0][i].detach(), expected, atol=1e-5)
            for of_graph, (modality, weights) in zip(outputs[1:], answer.weights.items(), strict=True):
                assert modality in model.feature_dims
                np.testing.assert_allclose(of_graph[i, : len(weights)].detach(), weights, atol=1e-5)


def test_a_graph_that_is_off_is_found() -> None:
    model = small_model(dtype=torch.float32)
    padded = PaddedAWTPN(model)
    with pytest.raises(RuntimeError, match=r"graph differs from the model by 1\.0e-01"):
        check(model, lambda inputs: [output + 0.1 for output in padded(*inputs)], "graph")
