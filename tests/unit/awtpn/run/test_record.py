"""What a run folder tells of its run is checked by all who read it."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import ALONE

from awtpn.config.command_line import parse_command_line, scalar
from awtpn.config.schema import KEYS_SINCE, dump, dump_yaml
from awtpn.experiments.ablation import read_variants
from awtpn.experiments.runner import Job, is_done, other_settings
from awtpn.report.data import read_run
from awtpn.run.folder import changed_keys, resume_folder, run_on_rank0
from awtpn.run.record import CONFIG_FILE, STATUS_FILE, read_section, read_settings, read_status
from awtpn.training.evaluate import trained_on
from shards import Sample, pack

DEEP = "[" * 5_000
OPTIONS = Namespace(split="test", cache_dir=None, storage_options=None, select=None)


@pytest.mark.parametrize("text", [DEEP, "a: b", "a: [", "[1, 2]", "\\x00", "2026-13-45"])
def test_settings_that_are_none_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(text)
    config, _ = parse_command_line(["--data.train=here"])
    for read in (
        lambda: changed_keys(config, tmp_path),
        lambda: trained_on(tmp_path, OPTIONS),
        lambda: other_settings(Job(("--data.train=here", f"--run.dir={tmp_path}"), tmp_path)),
    ):
        with pytest.raises(ValueError, match=CONFIG_FILE) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_settings_that_lack_a_section_are_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("model: {shared_dim: 8}\n")
    model = KEYS_SINCE["model"] | {"shared_dim": 8}
    later = {section: KEYS_SINCE[section] for section in ("task", "augment", "track")}
    assert read_settings(tmp_path) == {"model": model} | later
    with pytest.raises(ValueError, match="no settings of data"):
        read_section(tmp_path, "data")
    with pytest.raises(ValueError, match="no settings of data"):
        trained_on(tmp_path, OPTIONS)
    (tmp_path / CONFIG_FILE).write_text("data: {train: [1]}\n")
    with pytest.raises(ValueError, match=r"data\.train cannot be"):
        trained_on(tmp_path, OPTIONS)


def test_a_record_of_before_modalities_were_a_map_is_of_the_same_settings(tmp_path: Path) -> None:
    words = ["--data.train=here", "--model.alpha_audio=0.4", "--model.beta_video=0.7"]
    words += ["--model.distances=absolute", "--model.statistics=false"]
    now = dump(parse_command_line(words)[0])
    old = dump(parse_command_line(words)[0])
    del old["loss"]["pair_weights"], old["model"]["modality_dropout"]
    old["model"] |= {"alpha_audio": 0.4, "beta_video": 0.7, "modalities": ["audio", "video"]}
    old["model"] |= {"distance_scale_audio": 1.0, "distance_scale_video": 1.0}
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(old))
    assert read_settings(tmp_path) == now
    # The losses compared audio with video in whatever order these were named.
    old["model"]["modalities"].reverse()
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(old))
    assert changed_keys(parse_command_line(words)[0], tmp_path) == []
    swapped, _ = parse_command_line([*words, "--model.modalities=video,audio"])
    assert changed_keys(swapped, tmp_path) == ["model.modalities"]


def test_another_order_of_modalities_is_another_setting(tmp_path: Path) -> None:
    words = ["--data.train=here", f"--run.dir={tmp_path}", "--model.modalities"]
    (tmp_path / CONFIG_FILE).write_text(dump_yaml(parse_command_line([*words, "text,audio"])[0]))
    assert other_settings(Job((*words, "text,audio"), tmp_path)) == []
    assert other_settings(Job((*words, "audio,text"), tmp_path)) == ["model.modalities"]


def test_a_split_that_no_run_has_is_answered_with_one_that_it_has(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("data: {train: here}\n")
    options = Namespace(**vars(OPTIONS) | {"split": "tset"})
    with pytest.raises(ValueError, match=r"names no split 'tset': .* --data; did you mean test\?"):
        trained_on(tmp_path, options)


def test_a_split_that_the_data_lacks_is_answered_with_those_that_it_has(tmp_path: Path) -> None:
    samples = [Sample(f"u{i}", "all", "ab"[i % 2], {"audio": np.full((2, 2), i / 4)}) for i in range(4)]
    pack(samples, tmp_path / "d", classes=["a", "b"], progress=False)
    (tmp_path / CONFIG_FILE).write_text(f"data: {{train: {tmp_path / 'd'}}}\n")
    fix = f"no split 'test', but 'all': name a dataset and its split with --data, such as --data '{tmp_path}"
    with pytest.raises(ValueError, match=re.escape(fix)):
        trained_on(tmp_path, OPTIONS)


def test_a_checkpoint_to_resume_from_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes auto, never or a checkpoint folder, and there is no folder "):
        resume_folder(str(tmp_path / "none"))


@pytest.mark.parametrize("text", ["{}", "[]", "3", "", DEEP, '{"status": 3}'])
def test_a_status_that_is_none_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / STATUS_FILE).write_text(text)
    for read in (read_status, read_run, is_done):
        with pytest.raises(ValueError, match=STATUS_FILE) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", DEEP])
def test_variants_that_are_no_yaml_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"v\.yaml is not YAML") as caught:
        read_variants(tmp_path / "v.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["2026-13-45", "[" * 3_000, "a: [b"])
def test_a_word_that_is_no_value_is_text(text: str) -> None:
    assert scalar(text) == text


def test_an_error_of_any_kind_on_the_main_rank_reaches_all() -> None:
    def broken() -> None:
        raise RecursionError("deep")

    with pytest.raises(RecursionError):
        run_on_rank0(ALONE, broken)
