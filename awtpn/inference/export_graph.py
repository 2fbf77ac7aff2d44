"""Export the network as a graph that runs without this package: torch.export, and ONNX if installed.

Training packs utterances without padding and loops over their lengths. A graph cannot contain such a loop, so
it takes padded utterances with a mask per modality, and computes the same: masked steps enter no sum, softmax
or mean.

A graph of labels or values holds the task, its names and ranges, as JSON: `torch.export.load(file,
extra_files={"task": "", "names": "", "ranges": ""})`, or `metadata_props` of ONNX.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from awtpn.inference.predictor import pack_arrays
from awtpn.model.blocks import EPSILON, Standardize, fusion_weights
from awtpn.model.finite_outputs import NotFiniteError
from awtpn.model.network import AWTPN
from awtpn.model.task import Task, predicted_values, probabilities
from shards.safe_io.json_text import json_text

PROGRAM_FILE = "model.pt2"
ONNX_FILE = "model.onnx"
CHECKED_STEPS = (40, 3, 12, 1, 60, 5, 7)  # numbers of steps in `check`, taken in turn
# Largest difference of probabilities, of weights, and of values as shares of their range. Distances grow
# with D, and a softmax amplifies the rounding of large ones; an error in the masking causes a far larger
# difference.
TOLERANCE = 1e-3


class PaddedAWTPN(nn.Module):
    """AWTPN for B utterances padded to M steps per modality, in eval mode.

    Inputs, per modality in the order of `model.feature_dims`: features `[B, M, F]` float32, then the mask
    `[B, M]` bool, True where there is a step. Features where it is False are ignored; an utterance whose mask
    is all False lacks the modality. M may differ between modalities.

    Outputs: probabilities `[B, C]` of classes or labels, or values `[B, K]` in the unit of the target; then
    per modality the reliability weights `[B, M]`, 0 where masked.
    """

    def __init__(self, model: AWTPN) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        pooled, present, weights = [], [], []
        for i, modality in enumerate(self.model.feature_dims):
            x, mask = inputs[2 * i], inputs[2 * i + 1]
            vector, step_weights = self.encode(modality, x, mask)
            pooled.append(vector)
            present.append(mask.any(1))
            weights.append(step_weights)
        given = [self.model.config.fusion_weight(modality) for modality in self.model.feature_dims]
        weight = fusion_weights(given, torch.stack(present), pooled[0].dtype)
        logits = self.model.classifier((weight[..., None] * torch.stack(pooled)).sum(0))
        for i, (modality, of_statistics) in enumerate(self.model.statistics.items()):
            x, mask = inputs[2 * i], inputs[2 * i + 1]
            logits = logits + of_statistics(self.statistics(modality, x, mask), mask.any(1))
        return answer(logits, self.model.task), *weights

    def statistics(self, modality: str, x: Tensor, mask: Tensor) -> Tensor:
        """Mean and standard deviation over time of the standardized features: [B, M, F] -> [B, 2F]."""
        x = self.model.standardise[modality](torch.where(mask[..., None], x, 0.0))
        steps = mask.sum(1, keepdim=True).clamp(min=1)
        mean = (x * mask[..., None]).sum(1) / steps
        squares = (x - mean[:, None]).square() * mask[..., None]
        return torch.cat([mean, (squares.sum(1) / steps).sqrt()], 1)

    def encode(self, modality: str, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """One modality: features [B, M, F] and mask [B, M] -> pooled [B, D] and weights [B, M]."""
        model = self.model
        # Padding may hold NaN, and 0 * NaN is NaN: so replace it, do not multiply it by 0.
        x = torch.where(mask[..., None], x, 0.0)
        h = model.ses[modality](model.standardise[modality](x))
        if model.config.awm == "adaptive":
            distances = model.distances(modality, h.flatten(0, 1))
            nearest = distances.amin(-1).unflatten(0, mask.shape)
            reliability = masked_softmax(-nearest, mask)
            awm = model.awm[modality]
            q, k = h @ awm.query.T, h @ awm.key.T
            attention = masked_softmax((q @ k.mT) * q.shape[-1] ** -0.5, mask[:, None, :])
            w = torch.where(mask, (attention @ reliability[..., None])[..., 0], 0.0)
            weights = w / (w.sum(1, keepdim=True) + EPSILON)
        else:
            weights = mask.float() / mask.sum(1, keepdim=True).clamp(min=1)
        return (weights[..., None] * h).sum(1), weights


def answer(logits: Tensor, task: Task) -> Tensor:
    """What the task makes of the logits: probabilities, or values."""
    return predicted_values(logits, task) if task.type == "regression" else probabilities(logits, task)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where `mask` is True, 0 elsewhere; all zeros if it is nowhere True."""
    lowest = torch.finfo(scores.dtype).min  # not -inf: the softmax of only -inf is NaN
    return torch.where(mask, torch.softmax(torch.where(mask, scores, lowest), -1), 0.0)


def pad(arrays: Sequence[NDArray[Any] | None], dim: int) -> tuple[Tensor, Tensor]:
    """Pad one modality's [T, dim] arrays to features [B, M, dim] and mask [B, M]; None: missing."""
    lengths = [0 if a is None else len(a) for a in arrays]
    values = torch.zeros(len(arrays), max(1, *lengths), dim)
    mask = torch.zeros(values.shape[:2], dtype=torch.bool)
    for i, array in enumerate(arrays):
        if array is not None and len(array):
            values[i, : len(array)] = torch.from_numpy(np.asarray(array, np.float32))
            mask[i, : len(array)] = True
    return values, mask


def trace(model: AWTPN) -> torch.export.ExportedProgram:
    """The network as a torch.export program for any number of utterances and any numbers of steps."""
    # Example inputs whose sizes all differ: torch.export assumes that equal sizes are the same dimension.
    lengths = {modality: 5 + i for i, modality in enumerate(model.feature_dims)}
    examples: list[Tensor] = []
    shapes: list[dict[int, Any]] = []
    batch = torch.export.Dim("utterances", min=1)
    for modality, dim in model.feature_dims.items():
        steps = torch.export.Dim(f"{modality}_steps", min=1)
        examples += pad([np.ones((lengths[modality], dim), np.float32)] * 3, dim)
        shapes += [{0: batch, 1: steps}] * 2
    with torch.no_grad():
        program = torch.export.export(
            PaddedAWTPN(model.cpu()), tuple(examples), dynamic_shapes=(tuple(shapes),), strict=False
        )
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)  # holds paths of this machine
    return program


def write_graphs(model: AWTPN, folder: Path) -> dict[str, str]:
    """Write model.pt2, and model.onnx if onnxscript is installed.

    Returns:
        By file name a description for the model card.

    Raises:
        RuntimeError: a graph's outputs differ from the model's.
    """
    program = trace(model)
    takes, gives = ", ".join(input_names(model)), ", ".join(output_names(model))
    about = (
        f"takes {takes} ([utterances, steps, features] float32 and masks [utterances, steps]); gives {gives}"
    )
    record = task_record(model)
    if record:
        about += f"; {', '.join(f'{name} {text}' for name, text in record.items())}"
    torch.export.save(program, folder / PROGRAM_FILE, extra_files=record)
    loaded = torch.export.load(folder / PROGRAM_FILE).module()
    check(model, lambda inputs: loaded(*inputs), PROGRAM_FILE)
    written = {PROGRAM_FILE: f"torch.export program, `torch.export.load(file).module()`; {about}"}
    if importlib.util.find_spec("onnxscript"):
        write_onnx(program, model, folder / ONNX_FILE)
        written[ONNX_FILE] = f"ONNX; {about}"
    return written


def write_onnx(program: torch.export.ExportedProgram, model: AWTPN, path: Path) -> None:
    """Write the program as one ONNX file, and compare it with the model if onnxruntime is installed."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about torch's own code
        # optimize=False: else the + 1e-8 is removed, without which a missing modality gives 0 / 0.
        converted = torch.onnx.export(
            program,
            input_names=input_names(model),
            output_names=output_names(model),
            optimize=False,
            verbose=False,
        )
    assert converted is not None
    for graph in (converted.model.graph, *converted.model.functions.values()):
        for node in graph:
            node.metadata_props.clear()  # source files and lines, with paths of this machine
    converted.model.metadata_props.update(task_record(model))
    converted.save(path)
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = input_names(model)

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            given = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
            return [torch.from_numpy(output) for output in session.run(None, given)]

        check(model, run, path.name)


def input_names(model: AWTPN) -> list[str]:
    return [name for modality in model.feature_dims for name in (modality, f"{modality}_mask")]


def output_names(model: AWTPN) -> list[str]:
    answers = "values" if model.task.type == "regression" else "probabilities"
    return [answers, *(f"{modality}_weights" for modality in model.feature_dims)]


def task_record(model: AWTPN) -> dict[str, str]:
    """The task as texts, which a graph holds so that its outputs can be read without this package.

    Nothing for the classes of a dataset, whose names are in the card: such graphs are as they always were.
    """
    task = model.task
    if task.is_classes:
        return {}
    found = {"task": task.type, "names": json_text(task.names)}
    return found | ({"ranges": json_text(task.ranges)} if task.type == "regression" else {})


def lengths_to_check(modalities: int) -> list[NDArray[np.int64]]:
    """Batches for `check`: steps [M, B] of M modalities in B utterances; 0: missing.

    First one utterance of single steps; then utterances that have all modalities, each alone, all but each,
    and none.
    """
    alone = np.eye(modalities, dtype=np.int64)
    present = np.concatenate([np.ones_like(alone[:1]), alone, 1 - alone, np.zeros_like(alone[:1])]).T
    return [np.ones((modalities, 1), np.int64), present * np.resize(CHECKED_STEPS, present.shape)]


@torch.no_grad()
def check(model: AWTPN, graph: Callable[[Sequence[Tensor]], Sequence[Tensor]], name: str) -> None:
    """Compare a graph with the packed model on utterances of several lengths, some without some modalities.

    Values are compared as shares of their range.

    Raises:
        NotFiniteError: the model's own outputs are NaN or infinite, so they cannot be compared.
        RuntimeError: the outputs differ by more than TOLERANCE.
    """
    rng = np.random.default_rng(0)
    bounds = model.task.ranges if model.task.type == "regression" else [[0.0, 1.0]]
    scale = torch.tensor([high - low for low, high in bounds or ()])
    for lengths in lengths_to_check(len(model.feature_dims)):
        arrays = {
            modality: [std * rng.standard_normal((length, dim)).astype(np.float32) for length in of_modality]
            for (modality, dim), of_modality in zip(model.feature_dims.items(), lengths, strict=True)
            for std in [cast(Standardize, model.standardise[modality]).std.numpy()]
        }
        packed = {m: pack_arrays(arrays[m], dim) for m, dim in model.feature_dims.items()}
        expected = model(packed)
        if not expected.logits.isfinite().all():
            raise NotFiniteError(
                f"{name} cannot be compared with the model, whose outputs are NaN or infinite even for usual "
                "features: take an earlier checkpoint, or train again with a lower optim.lr"
            )
        found = graph([t for m, dim in model.feature_dims.items() for t in pad(arrays[m], dim)])
        gaps = [((found[0] - answer(expected.logits, model.task)).abs() / scale).max()]
        for of_graph, stream in zip(found[1:], expected.streams.values(), strict=True):
            mask = torch.arange(of_graph.shape[1]) < stream.offsets.diff()[:, None]
            gaps += [(of_graph[mask] - stream.weights).abs().max()] if mask.any() else []
        largest = float(torch.stack(gaps).max())  # NaN if any of them is NaN, so that `not <=` catches it
        if not largest <= TOLERANCE:
            raise RuntimeError(f"{name} differs from the model by {largest:.1e}")
