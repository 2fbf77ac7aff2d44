"""What a run refuses and tells of the targets of its data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ALONE
from targets_support import corpus, pack

from awtpn.config.settings import DataConfig
from awtpn.report.run_record import validations
from awtpn.run.data import check_targets, evaluation_stream, nothing_to_learn, rare_labels, remarks_on_splits
from shards import FeatureStream

NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "labels", "held"),
    [
        ([1.0, NAN, 2.0], False, None),
        ([2.5, NAN, 2.5], False, "the same 'v' (2.5)"),
        ([NAN, NAN], False, "no value of 'v'"),
        ([0.0, NAN, 2.0], True, None),
        ([1.0, NAN, 3.0], True, "'v' present (above 0)"),
        ([0.0, NAN, 0.0], True, "'v' absent (0)"),
        ([NAN], True, "no value of 'v'"),
    ],
)
def test_what_all_utterances_have(values: list[float], labels: bool, held: str | None) -> None:
    assert nothing_to_learn(np.array(values), "v", labels) == held


def test_utterances_without_a_target_are_told_and_not_counted(tmp_path: Path) -> None:
    pack(corpus(), tmp_path / "d")
    url = str(tmp_path / "d")

    def opened(split: str, **chosen: Any) -> FeatureStream:
        return FeatureStream(url, split=split, global_batch_size=4, **chosen)

    train = opened("train", target="activation")
    assert train.without_target == 26
    told = remarks_on_splits(train, (None, opened("test")))
    assert f"not used of {url}#train: 26 utterances without a value of 'activation'" in told
    labels = opened("train", target="valence", task="multilabel")
    with pytest.raises(
        ValueError, match=r"have 'valence' present \(above 0\), and there is nothing to learn"
    ):
        check_targets(labels, labels.target_values())
    check_targets(train, train.target_values())


def test_a_hidden_test_is_no_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = [
        replace(sample, meta=sample.meta | ({"activation": None} if sample.split == "test" else {}))
        for sample in corpus()
    ]
    pack(hidden, tmp_path / "d")
    data = DataConfig(train=str(tmp_path / "d"), target="activation")
    assert evaluation_stream(data, "test", ["audio"], ALONE) is None
    assert "there will be no test: " in capsys.readouterr().out
    # A test that was asked for is not left out.
    data.test = f"{data.train}#test"
    with pytest.raises(ValueError, match="no utterance has a value of 'activation'"):
        evaluation_stream(data, "test", ["audio"], ALONE)


def test_labels_that_few_utterances_have(tmp_path: Path) -> None:
    samples = [
        replace(sample, meta=sample.meta | {"often": i % 2, "rare": int(i % 8 == 0), "hardly": None})
        for i, sample in enumerate(corpus())
    ]
    samples[0] = replace(samples[0], meta=samples[0].meta | {"hardly": 1})
    pack(samples, tmp_path / "d")
    columns = ["often", "rare", "hardly"]
    train = FeatureStream(str(tmp_path / "d"), split="train", target=columns, task="multilabel")
    assert rare_labels(train, train.target_values()) == ["rare"], (
        "of the one utterance whose label is known, all have it"
    )


def test_a_run_without_event_files_has_no_validations(tmp_path: Path) -> None:
    assert validations(tmp_path, "MAE") == []
