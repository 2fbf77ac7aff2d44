"""The `awtpn` command from features to predictions, as a user types it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import CLASSES, DIMS

from awtpn import AWTPN, Predictor
from awtpn.cli import main
from awtpn.training.trainer import main as train
from shards import FeatureStream

SHORT = ["--model.shared_dim", "16", "--train.global_batch_size", "16", "--train.max_steps", "4"]


def awtpn(*words: object) -> None:
    main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "short"
    train(["--data.train", corpus, "--run.dir", str(run), *SHORT])
    return run


def test_a_table_of_arrays_becomes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        row = {
            "key": f"clip{i}",
            "split": ["train", "val", "test"][i % 3],
            "label": CLASSES[i % 3],
            "speaker": i % 4,
        }
        for name, dim in DIMS.items():
            np.save(tmp_path / f"{i}.{name}.npy", rng.standard_normal((3 + i, dim)).astype(np.float32))
            row[name] = f"{i}.{name}.npy"
        rows.append(row)
    rows[5]["video"] = ""  # no face was found
    with (tmp_path / "clips.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    awtpn(
        "pack", tmp_path / "clips.csv", tmp_path / "out", "--format", "table", "--labels", ",".join(CLASSES)
    )
    assert "train: 4 utterances in 1 shard\n" in capsys.readouterr().out
    stream = FeatureStream(str(tmp_path / "out"), split="test", global_batch_size=4, shuffle=False)
    assert stream.classes == CLASSES
    batch = next(iter(stream.epoch(0)))
    assert batch.key == ["clip2", "clip5", "clip8", "clip11"]
    assert batch.features["video"].host_offsets.diff().tolist() == [5, 0, 11, 14]
    assert [meta["speaker"] for _, meta in stream.metadata()] == [2, 1, 0, 3]


def test_published_files_become_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val", "test"):
        features = {f"{name}_feats": torch.randn(6, 4, dim) for name, dim in DIMS.items()}
        torch.save({**features, "labels": torch.tensor([0, 1, 2, 0, 1, 2])}, tmp_path / f"{split}.pt")
    awtpn("pack", tmp_path, tmp_path / "out", "--format", "reference", "--labels", ",".join(CLASSES))
    assert FeatureStream(str(tmp_path / "out"), split="val").num_utterances == 6
    with pytest.raises(SystemExit, match=r"error: .*overwrite"):
        awtpn("pack", tmp_path, tmp_path / "out", "--format", "reference")


def test_shards_are_shown_checked_and_simulated(corpus: str, capsys: pytest.CaptureFixture[str]) -> None:
    awtpn("shards", "info", corpus)
    assert "split train: 52 utterances" in capsys.readouterr().out
    awtpn("shards", "preview", corpus, "-n", 1)
    assert "train-000" in capsys.readouterr().out
    awtpn("shards", "verify", corpus)
    assert "80 utterances: all as in the manifest" in capsys.readouterr().out
    cluster = ("--nodes", 2, "--gpus-per-node", 2, "--global-batch", 16)
    awtpn("shards", "simulate", corpus, *cluster)
    assert "2 nodes x 2 GPUs" in capsys.readouterr().out
    awtpn("shards", "simulate", "1000000x1000", "--synthetic", *cluster)
    assert "1,000,000 utterances" in capsys.readouterr().out


def test_a_damaged_shard_is_named(corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    tar = next(copy.glob("test-*.tar"))
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content)
    with pytest.raises(SystemExit):
        awtpn("shards", "verify", copy)
    assert tar.name in capsys.readouterr().out


def test_a_run_is_exported_and_predicts(
    trained: Path, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    awtpn("export", trained, tmp_path / "model")
    written = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert written == ["README.md", "checksums.json", "config.json", "model.safetensors"]
    with pytest.raises(SystemExit, match="exists already"):
        awtpn("export", trained, tmp_path / "model")
    awtpn("predict", tmp_path / "model", corpus, "--out", tmp_path / "answers.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    stream = FeatureStream(corpus, split="test", global_batch_size=8, shuffle=False)
    batches = list(stream.epoch(0))
    assert [a["key"] for a in answers] == [key for batch in batches for key in batch.key]

    # The same answers from arrays, and by the model itself.
    model = AWTPN.from_pretrained(tmp_path / "model")
    logits = torch.cat([model(batch.features).logits for batch in batches]).detach()
    assert [a["label"] for a in answers] == [CLASSES[i] for i in logits.argmax(-1)]
    predictor = Predictor.from_pretrained(trained)
    one = batches[0]
    arrays = [
        {m: r.values[r.host_offsets[i] : r.host_offsets[i + 1]].numpy() for m, r in one.features.items()}
        for i in range(len(one))
    ]
    for answer, prediction in zip(answers, predictor.predict(arrays), strict=False):
        assert prediction.label == answer["label"]
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        for modality, weights in prediction.weights.items():
            np.testing.assert_allclose(weights, answer["weights"][modality], atol=2e-6)
    with pytest.raises(ValueError, match="utterance 0 has no steps"):
        predictor.predict([{"audio": None, "video": None}])
    with pytest.raises(ValueError, match=r"audio has shape \(2, 3\), but the model takes \[steps, 6\]"):
        predictor.predict([{"audio": np.zeros((2, 3))}])


def test_a_run_starts_from_another_model(trained: Path, corpus: str, tmp_path: Path) -> None:
    run = tmp_path / "next"
    train(
        [
            "--data.train",
            corpus,
            "--run.dir",
            str(run),
            "--run.init_from",
            str(trained),
            *SHORT,
            "--optim.lr",
            "1e-12",
        ]
    )
    first, second = (AWTPN.from_pretrained(r / "checkpoints" / "best").state_dict() for r in (trained, run))
    for name, tensor in first.items():
        if name.startswith("spread."):  # of the data, in units of the weights that it starts from
            continue
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"run\.init_from: \S+ is \(16"):
        train(
            [
                "--data.train",
                corpus,
                "--run.dir",
                str(tmp_path / "other"),
                "--run.init_from",
                str(trained),
                *SHORT,
                "--model.shared_dim",
                "8",
            ]
        )


def test_a_run_does_not_go_on_with_other_utterances(trained: Path, corpus: str) -> None:
    """What a checkpoint was trained on must not become what it is tested on."""
    before = {name: (trained / name).read_text() for name in ("config.yaml", "status.json", "metrics.jsonl")}
    other = [
        "--data.train",
        corpus,
        "--run.dir",
        str(trained),
        "--data.select.train",
        "{fold: [0, 1]}",
        *SHORT,
    ]
    with pytest.raises(ValueError, match="was trained on other utterances"):
        train(other)
    with pytest.raises(ValueError, match="holds another run's checkpoints"):
        train(["--data.train", corpus, "--run.dir", str(trained), "--run.resume", "never", *SHORT])
    assert {name: (trained / name).read_text() for name in before} == before, (
        "a refused start leaves no trace"
    )


def test_a_copy_without_links_still_resumes(trained: Path, corpus: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("latest", "best"))
    longer = [*SHORT[:-1], "6"]
    train(["--data.train", corpus, "--run.dir", str(copy), *longer])
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert (copy / "results.json").is_file()
