"""Models on int8 features are those on the values that they stand for, to rounding, wherever data is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import CLASSES, DIMS, arguments, assert_like_runs, features, pack_corpus, small_model, utterances

from awtpn import Predictor
from awtpn.cli import main
from awtpn.experiments.pooled import pool_utterances
from awtpn.learning.modality_dropout import drop_modalities
from awtpn.model.models import build_model
from awtpn.model.settings import ModelConfig
from awtpn.run.predictions import read_predictions
from awtpn.training import trainer
from shards import FeatureStream, Ragged

# What reads features at the start: prototypes from data, the scales of distances and of statistics.
SETTINGS: dict[str, Any] = {
    "model.shared_dim": 16,
    "model.dropout": 0.1,
    "model.distances": "relative",
    "model.statistics": True,
    "model.modality_dropout": 0.2,
    "prototypes.init": "data",
    "train.epochs": 3,
    "train.global_batch_size": 16,
    "train.pictures": "never",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A corpus as int8; what that stands for, as float32; and the corpus as float16."""
    root = tmp_path_factory.mktemp("data")
    exact = pack_corpus(root / "exact", dtype="float32")
    made = {name: str(root / name) for name in ("int8", "float16", "float32")}
    for name, source in (("int8", exact), ("float16", exact), ("float32", made["int8"])):
        main(["pack", source, made[name], "--format", "dataset", "--dtype", name])
    return made


@pytest.fixture(scope="module")
def runs(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("runs"), {}
    for name, url in data.items():
        found[name] = root / name
        trainer.main(arguments(SETTINGS | {"data.train": url, "run.dir": found[name]}))
    return found


def probabilities(file: Path) -> dict[str, list[float]]:
    return {line["key"]: list(line["probabilities"].values()) for line in read_predictions(file)}


def evaluate(run: Path, url: str, out: Path) -> dict[str, list[float]]:
    main(["evaluate", str(run), "--data", url, "--predictions", str(out)])
    return probabilities(out)


def assert_close(one: dict[str, list[float]], other: dict[str, list[float]], within: float) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_allclose(one[key], other[key], rtol=0, atol=within)


def test_a_run_is_that_on_the_values(runs: dict[str, Path]) -> None:
    assert_like_runs(runs["int8"], runs["float32"])
    for split in ("val", "test"):
        files = [runs[name] / f"predictions-{split}.jsonl" for name in ("int8", "float32")]
        assert_close(probabilities(files[0]), probabilities(files[1]), 1e-4)


def test_a_run_is_close_to_that_on_float16(runs: dict[str, Path]) -> None:
    files = [runs[name] / "predictions-test.jsonl" for name in ("int8", "float16")]
    assert_close(probabilities(files[0]), probabilities(files[1]), 0.1)


def test_each_model_predicts_on_the_data_of_the_other(
    data: dict[str, str], runs: dict[str, Path], tmp_path: Path
) -> None:
    """The scales are of a dataset, not of a model."""
    for name in ("int8", "float16"):
        found = {of: evaluate(runs[name], url, tmp_path / f"{name}-{of}.jsonl") for of, url in data.items()}
        assert_close(found["int8"], found["float32"], 2e-6)
        assert_close(found["int8"], found["float16"], 0.05)


def test_validation_data_of_another_dtype(
    data: dict[str, str], runs: dict[str, Path], tmp_path: Path
) -> None:
    results = {}
    for val in ("int8", "float32", "float16"):
        run = tmp_path / val
        given = {
            "data.train": data["int8"],
            "data.val": data[val],
            "data.test": data["float16"],
            "run.dir": run,
        }
        trainer.main(arguments(SETTINGS | given))
        results[val] = probabilities(run / "predictions-val.jsonl")
    assert_close(results["int8"], results["float32"], 1e-4)
    assert_close(results["int8"], results["float16"], 0.1)


def test_an_export_predicts_for_int8_data_and_for_arrays(
    data: dict[str, str], runs: dict[str, Path], tmp_path: Path
) -> None:
    main(["export", str(runs["int8"]), str(tmp_path / "model")])
    predictor = Predictor.from_pretrained(tmp_path / "model")
    answers = []
    for name in ("int8", "float32"):
        stream = FeatureStream(data[name], split="test", global_batch_size=5, shuffle=False)
        answers.append({key: of.probabilities for key, of in predictor.predict_stream(stream)})
    stream = FeatureStream(data["int8"], split="test", global_batch_size=1, shuffle=False)
    batches = list(stream.epoch(0))
    given = [{m: ragged.dequantized().numpy() for m, ragged in batch.features.items()} for batch in batches]
    answers.append(
        {b.key[0]: of.probabilities for b, of in zip(batches, predictor.predict(given), strict=True)}
    )
    for key, expected in answers[0].items():
        for other in answers[1:]:
            assert other[key] == pytest.approx(expected, abs=2e-6)
    stored = {m: ragged.values.numpy() for m, ragged in batches[0].features.items()}
    with pytest.raises(
        ValueError, match=r"is int8, as a dataset of int8 features stores it: give the values"
    ):
        predictor.predict([stored])


def test_the_baseline_reads_the_values(data: dict[str, str]) -> None:
    streams = [FeatureStream(data[name], split="train", shuffle=False) for name in ("int8", "float32")]
    ours, theirs = pool_utterances(streams)
    np.testing.assert_allclose(ours.rows, theirs.rows, rtol=0, atol=1e-6)
    assert np.abs(ours.rows).max() < 20


def test_prediction_from_the_command_line(
    data: dict[str, str], runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for name in ("int8", "float32"):
        main(["predict", str(runs["float16"]), f"{data[name]}#test"])
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        found.append({line["key"]: line["probabilities"] for line in lines})
    assert len(found[0]) == 14
    for key, expected in found[0].items():
        assert found[1][key] == pytest.approx(expected, abs=1e-3)


# --- The model -----------------------------------------------------------------------------------


def quantized(given: dict[str, Ragged]) -> dict[str, Ragged]:
    generator = torch.Generator().manual_seed(2)
    return {
        m: replace(
            ragged,
            values=(20 * ragged.values).round().clamp(-127, 127).to(torch.int8),
            quantization=torch.stack(
                [
                    0.05 + torch.rand(DIMS[m], generator=generator),
                    torch.randn(DIMS[m], generator=generator),
                ]
            ),
        )
        for m, ragged in given.items()
    }


def dequantized(given: dict[str, Ragged]) -> dict[str, Ragged]:
    return {m: replace(of, values=of.dequantized(), quantization=None) for m, of in given.items()}


MODELS: dict[str, Callable[[], Any]] = {
    "awtpn": lambda: small_model(dtype=torch.float32, statistics=True),
    "awtpn, float64": small_model,
    "gru": lambda: build_model(ModelConfig(name="gru", shared_dim=8, dropout=0.0), DIMS, CLASSES),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_take_it_as_the_values(name: str) -> None:
    """Also where a modality is missing, and where there is no utterance at all."""
    model = MODELS[name]()
    for m, dim in DIMS.items():
        model.set_statistics(m, torch.linspace(-3, 9, dim), torch.linspace(0.2, 30, dim))
    for lengths in ([(3, 2), (1, 0), (0, 4)], []):
        given = quantized(features(utterances(lengths, dtype=torch.float32)))
        expected = model(dequantized(given)).logits
        torch.testing.assert_close(model(given).logits, expected, rtol=1e-4, atol=1e-5)


def test_train_compile_takes_it() -> None:
    standardize = small_model(dtype=torch.float32).standardise["audio"]
    standardize.set_statistics(torch.linspace(-3, 9, 6), torch.linspace(0.2, 30, 6))
    given = quantized(features(utterances([(30, 2), (11, 0)], dtype=torch.float32)))["audio"]
    expected = standardize(given.dequantized())
    torch._dynamo.reset()
    compiled = torch.compile(standardize, backend="eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(given.values, given.quantization), expected, rtol=1e-5, atol=1e-5)


def test_int8_without_scales_is_refused() -> None:
    model = small_model()
    given = quantized(features(utterances([(3, 2)])))
    bare = {m: replace(of, quantization=None) for m, of in given.items()}
    with pytest.raises(ValueError, match="int8 features need their scale and offset"):
        model(bare)


def test_scales_go_where_the_features_go(data: dict[str, str]) -> None:
    whole = next(FeatureStream(data["int8"], global_batch_size=16).epoch(0))
    hidden = drop_modalities(whole, {"audio": 0.5, "video": 0.5}, seed=1, step=0)
    for batch in (whole.to("cpu"), whole.take([3, 1]), *whole.split(2), hidden):
        for m, ragged in batch.features.items():
            assert ragged.values.dtype == torch.int8
            assert ragged.quantization is not None
            torch.testing.assert_close(ragged.quantization, whole.features[m].quantization)
    assert sum(len(of.values) for of in hidden.features.values()) < sum(
        len(of.values) for of in whole.features.values()
    )
    assert whole.num_bytes == sum(of.values.numel() for of in whole.features.values())
