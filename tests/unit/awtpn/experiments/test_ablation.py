"""Ablations: differences are paired, and independent only between folds; its variants can be trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from awtpn.config.command_line import parse_command_line
from awtpn.experiments import ablation
from awtpn.experiments.runner import Job
from awtpn.experiments.scores import Score
from awtpn.learning.settings import TERMS


def scores(f1: dict[tuple[Any, int], float]) -> list[Score]:
    return [
        Score(fold, seed, dict.fromkeys(("w-F1", "w-ACC", "UA", "macro-F1"), x))
        for (fold, seed), x in f1.items()
    ]


def test_seeds_are_averaged_within_a_fold_before_the_error() -> None:
    base = scores({(0, 0): 0.5, (0, 1): 0.7, (1, 0): 0.8, (1, 1): 0.8})
    variant = scores({(1, 1): 0.7, (0, 0): 0.5, (0, 1): 0.6, (1, 0): 0.6})  # in any order
    row = ablation.paired(variant, base)
    assert sorted(row["differences"]) == pytest.approx([-0.15, -0.05])
    assert row["difference"] == pytest.approx(-0.1)
    assert row["standard_error"] == pytest.approx(0.05)
    # t(0.975, 1) = 12.7062
    assert row["interval"] == pytest.approx([-0.1 - 0.635310, -0.1 + 0.635310], abs=1e-6)


def test_without_folds_seeds_are_the_draws() -> None:
    row = ablation.paired(
        scores({(None, s): 0.5 + s / 10 for s in range(3)}), scores({(None, s): 0.5 for s in range(3)})
    )
    assert row["differences"] == pytest.approx([0, 0.1, 0.2])
    one = ablation.paired(scores({(None, 0): 0.6}), scores({(None, 0): 0.5}))
    assert one["difference"] == pytest.approx(0.1)
    assert one["standard_error"] is None
    assert one["interval"] is None


def test_the_tables_variants_are_settings_that_a_run_takes() -> None:
    variants = ablation.read_variants()
    assert len(variants) >= 11
    for overrides in variants.values():
        config, _ = parse_command_line(ablation.arguments_of(overrides))
        for key, value in overrides.items():
            section, _, name = key.partition(".")
            given = getattr(getattr(config, section), name)
            assert (list(given) if key == "model.modalities" else given) == value
    off = {key for overrides in variants.values() for key in overrides}
    assert {"model.awm", "model.modalities", *(f"loss.{weight}" for weight in TERMS.values())} <= off


def test_each_loss_term_has_a_variant_without_it() -> None:
    variants = ablation.read_variants()
    names = ["align off", "intra off", "inter off", "contrast off", "cross-entropy off", "mse off"]
    assert list(variants)[:6] == names, "the names and folders of earlier ablations"
    assert list(variants.values())[: len(TERMS)] == [{f"loss.{weight}": 0.0} for weight in TERMS.values()]


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ("text", {}),
        ("audio,video", {"audio alone": ["audio"], "video alone": ["video"]}),
        (
            "audio,video,text",
            {
                "audio alone": ["audio"],
                "video alone": ["video"],
                "text alone": ["text"],
                "without audio": ["video", "text"],
                "without video": ["audio", "text"],
                "without text": ["audio", "video"],
            },
        ),
    ],
)
def test_modalities_in_use_are_taken_alone_and_left_out(used: str, expected: dict[str, list[str]]) -> None:
    base, _ = parse_command_line([f"--model.modalities={used}"])
    variants = ablation.read_variants(base=base)
    found = {name: of["model.modalities"] for name, of in variants.items() if "model.modalities" in of}
    assert found == expected
    assert [ablation.folder_of(name) for name in found] == [name.replace(" ", "-") for name in expected]


def test_four_modalities_have_eight_variants() -> None:
    base, _ = parse_command_line(["--model.modalities=audio,video,text,pose"])
    variants = ablation.read_variants(base=base)
    assert sum("model.modalities" in overrides for overrides in variants.values()) == 8


def test_pairs_that_the_base_does_not_compare_are_not_compared() -> None:
    training = ["--model.modalities=audio,video,text", "--loss.pair_weights={audio-video: 0}"]
    base, _ = parse_command_line(training)
    overrides = ablation.read_variants(base=base, only=["without text"])["without text"]
    loss = parse_command_line([*training, *ablation.arguments_of(overrides)])[0].loss
    assert (loss.lambda_intra, loss.lambda_inter, loss.lambda_contrast) == (0, 0, 0)


def test_settings_of_modalities_that_are_left_out_are_left_out() -> None:
    training = [
        "--model.modalities={audio: {weight: 0.2}, video: {}, text: {weight: 0.6}}",
        "--loss.pair_weights={audio-video: 1, audio-text: 2}",
        "--model.modality_dropout={text: 0.5, audio: 0.1}",
    ]
    base, _ = parse_command_line(training)
    for name, overrides in ablation.read_variants(base=base).items():
        config, _ = parse_command_line([*training, *ablation.arguments_of(overrides)])
        kept = {"audio": 0.2, "video": 1.0, "text": 0.6} if name != "published fusion" else {"audio": 0.3}
        weights = {m: config.model.fusion_weight(m) for m in config.model.modalities}
        assert weights.items() <= kept.items() if len(weights) < 3 else kept.items() <= weights.items()
        if name == "without video":
            assert config.loss.pair_weights == {"audio-text": 2}
            assert config.model.modality_dropout == {"text": 0.5, "audio": 0.1}
        if name == "text alone":
            assert config.loss.pair_weights == {}
            assert config.model.modality_dropout == {"text": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "write a line per variant"),
        ("empty: {}", "write a line per variant"),
        ("base: {optim.lr: 1.0}", "cannot be a variant's name"),
        ("seeds: {run.seed: 3}", "sets run.seed"),
    ],
)
def test_what_is_no_table_of_variants_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        ablation.read_variants(tmp_path / "v.yaml")


def test_some_variants_may_be_chosen() -> None:
    assert list(ablation.read_variants(only=["AWM off"])) == ["AWM off"]
    with pytest.raises(ValueError, match=r"no variant 'AWM of'; it has align off"):
        ablation.read_variants(only=["AWM of"])


def test_base_and_variants_share_seeds_and_become_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(jobs: Sequence[Job], **_: Any) -> None:
        for job in jobs:
            seed = int(next(a for a in job.arguments if a.startswith("--run.seed=")).partition("=")[2])
            off = "--model.awm=uniform" in job.arguments
            figure = dict.fromkeys(("w-F1", "w-ACC", "UA", "macro-F1"), 0.5 + seed / 100 - off * 0.1)
            job.run_dir.mkdir(parents=True)
            (job.run_dir / "results.json").write_text(json.dumps({"test": figure}))

    monkeypatch.setattr(ablation, "train_all", train)
    variants = ablation.read_variants(only=["AWM off"])
    results = ablation.ablate([], variants, None, [3, 5], tmp_path)
    assert results["variants"]["AWM off"]["difference"] == pytest.approx(-0.1)
    assert (tmp_path / "AWM-off" / "seed-5").is_dir()
    table = (tmp_path / "ablations.md").read_text()
    assert "| **base** | **54.00** |" in table
    assert "| AWM off | 44.00 | -10.00 | 0.00 |" in table
    assert table.splitlines()[0] in capsys.readouterr().out
    with pytest.raises(ValueError, match="leave it out"):
        ablation.ablate(["--run.seed=1"], variants, None, [0], tmp_path)
