"""The configuration: typed, refused by name, and the same after a round trip through YAML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support import REPO

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config, dump, dump_yaml

# ablations.yaml holds arguments of many runs.
CONFIGS = sorted(path for path in (REPO / "configs").glob("*.yaml") if path.stem != "ablations")


def test_no_arguments_mean_the_demo() -> None:
    config, launch = parse_command_line([])
    assert config == parse_command_line(["--config", str(REPO / "configs" / "demo.yaml")])[0]
    assert config.data.train == "demo"
    assert launch.deepspeed_file is None
    assert not launch.by_deepspeed_launcher
    # Overrides of the demo remain the demo; naming data means that data and the plain defaults.
    assert parse_command_line(["--optim.lr", "0.5"])[0].model == config.model
    assert parse_command_line(["--data.train", "somewhere"])[0].model == Config().model


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid_and_reloads(path: Path, tmp_path: Path) -> None:
    config, _ = parse_command_line(["--config", str(path)])
    (tmp_path / "again.yaml").write_text(dump_yaml(config))
    assert dump(parse_command_line(["--config", str(tmp_path / "again.yaml")])[0]) == dump(config)


@pytest.mark.parametrize("modalities", [None, ["video"], ["audio", "video", "text"]])
def test_what_is_printed_is_what_is_meant(
    modalities: list[str] | None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--optim.lr", "3e-4", "--data.select.val", "{fold: [1, 2]}"]
    words += ["--model.modalities", str(modalities)] if modalities else []
    with pytest.raises(SystemExit) as stop:
        parse_command_line([*words, "--print_config"])
    assert stop.value.code == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config, _ = parse_command_line(["--config", str(tmp_path / "printed.yaml")])
    assert config == parse_command_line(words)[0]
    assert config.data.select.val == {"fold": [1, 2]}
    assert list(config.model.modalities) == (modalities or ["audio", "video"])


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    """PyYAML alone reads 1e-4 as a string."""
    (tmp_path / "c.yaml").write_text("optim:\n  lr: 1e-4\n  weight_decay: 2E-3\n  grad_clip: 1e1\n")
    optim = parse_command_line(["--config", str(tmp_path / "c.yaml"), "--loss.tau", "5e-1"])[0]
    assert (optim.optim.lr, optim.optim.weight_decay, optim.optim.grad_clip) == (1e-4, 2e-3, 10.0)
    assert isinstance(optim.optim.lr, float)
    assert optim.loss.tau == 0.5


def test_overrides_rule_over_the_file_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {epochs: 7, log_every: 3}\n")
    config, _ = parse_command_line(["--config", str(tmp_path / "c.yaml"), "--train.epochs", "9"])
    assert (config.train.epochs, config.train.log_every) == (9, 3)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--train.batch_size", "3"], "train.batch_size"),
        (["--trian.epochs", "3"], "trian.epochs"),
        (["--train.epochs", "many"], "train.epochs"),
        (["--train.epochs", "1.5"], "train.epochs"),
        (["--optim.lr", "fast"], "optim.lr"),
        (["--train.precision", "fp8"], "train.precision"),
        (["--train.zero_stage", "4"], "train.zero_stage"),
        (["--loss.negatives", "hard"], "loss.negatives"),
        (["--model.modalities", "3"], "model.modalities"),
        (["--config", "no-such.yaml"], "no-such.yaml"),
    ],
)
def test_unknown_keys_and_wrong_types_are_refused_by_name(
    words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_command_line(words)
    assert stop.value.code not in (0, None)
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--lr", "3"], "there is no --lr; did you mean --optim.lr? (awtpn train --help lists all keys)"),
        (
            ["--train.epoch", "3"],
            "there is no --train.epoch; did you mean --train.epochs? (awtpn train --help lists all keys)",
        ),
        (["--optim.lr"], "--optim.lr needs a value"),
        (["--train.zero_stage", "5"], "train.zero_stage takes 0, 1, 2, 3 or null, not 5"),
        (["--train.max_steps", "many"], "train.max_steps takes a whole number or null, not many"),
        (
            ["--data.select.test", "fold=3"],
            "data.select.test takes a mapping such as {a: 1, b: 2} or null, not fold=3",
        ),
        (
            ["configs/demo.yaml"],
            "configs/demo.yaml is no option: write keys as --key value, and a file as --config FILE",
        ),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(
    words: list[str], answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_command_line(words)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {answer}\n"


def test_an_unknown_key_in_a_file_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("train:\n  epochs: 3\n  momentum: 0.9\n")
    with pytest.raises(SystemExit):
        parse_command_line(["--config", str(tmp_path / "c.yaml")])
    assert "momentum" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--train.epochs", "0"], "train.epochs"),
        (["--train.max_steps", "0"], "train.max_steps"),
        (["--train.min_steps", "-1"], "train.min_steps"),
        (["--train.patience", "0"], "train.patience"),
        (["--train.ema_decay", "1"], "train.ema_decay"),
        (["--optim.warmup_share", "-0.1"], "optim.warmup_share"),
        (["--train.micro_batch_size", "-2"], "train.micro_batch_size"),
        (["--train.keep_last", "0"], "train.keep_last"),
        (["--run.seed", "-1"], "run.seed"),
        (["--model.dropout", "1.0"], "model.dropout"),
        (["--prototypes.ema_decay", "1.0"], "prototypes.ema_decay"),
        (["--prototypes.check_every", "-1"], "prototypes.check_every"),
        (["--loss.negative_group", "1"], "loss.negative_group"),
        (["--loss.margin_inter", "-1"], "loss.margin_inter must not be negative"),
        (["--loss.margin_contrast", "-0.1"], "loss.margin_contrast must not be negative"),
        (["--loss.lambda_intra", "-1"], "loss.lambda_intra must not be negative"),
        (["--loss.eta_ce", "-1"], "loss.eta_ce must not be negative"),
        (["--loss.eta_mse", ".nan"], "loss.eta_mse must be a finite number, but is nan"),
        (["--data.streams", "0"], "data.streams must divide train.global_batch_size 32, but is 0"),
        (["--data.streams", "5"], "data.streams must divide train.global_batch_size 32, but is 5"),
        (["--prototypes.update", "ema", "--loss.lambda_align", "0"], "prototypes.update=ema.*lambda_align"),
    ],
)
def test_contradictions_are_refused_by_name(words: list[str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_command_line(words)


def test_the_deepspeed_launcher_is_recognised(tmp_path: Path) -> None:
    file = tmp_path / "some.json"
    file.write_text("{}")
    _, launch = parse_command_line(["--local_rank=1", "--deepspeed", str(file)])
    assert launch.by_deepspeed_launcher
    assert launch.deepspeed_file == str(file)


def test_credentials_are_never_written() -> None:
    words = ["--data.train", "s3://b/d", "--data.storage_options", "{key: me, secret: s3cr3t}"]
    config, _ = parse_command_line(words)
    assert config.data.storage_options == {"key": "me", "secret": "s3cr3t"}, "the run itself has them"
    assert "s3cr3t" not in dump_yaml(config)
    assert "s3cr3t" not in repr(dump(config))
    plain = replace(config, data=replace(config.data, storage_options={}))
    assert dump(config) == dump(plain)
    assert yaml.safe_load(dump_yaml(config)) == dump(config)
    config, _ = parse_command_line(["--data.train", "sftp://me:s3cr3t@host/corpus#dev"])
    assert dump(config)["data"]["train"] == "sftp://host/corpus#dev"


def test_the_run_folder_may_be_a_url() -> None:
    words = ["--run.dir", "s3://bucket/runs/one/", "--run.local_dir", "~/one"]
    config, _ = parse_command_line([*words, "--run.storage_options", "{key: me, secret: s3cr3t}"])
    assert config.run.dir == "s3://bucket/runs/one"
    assert config.run.local_dir == str(Path("~/one").expanduser())
    assert config.run.storage_options == {"key": "me", "secret": "s3cr3t"}
    assert "s3cr3t" not in dump_yaml(config)
    config, _ = parse_command_line(
        ["--run.dir", "sftp://me:s3cr3t@host/run", "--run.storage_options.port", "22"]
    )
    assert dump(config)["run"]["dir"] == "sftp://host/run"
    assert config.run.storage_options == {"port": 22}
    at = "sftp://me:s3cr3t@host/run/checkpoints/best"
    config, _ = parse_command_line(["--run.resume", at, "--run.init_from", "sftp://me:s3cr3t@host/run"])
    assert config.run.resume == at
    assert "s3cr3t" not in dump_yaml(config)
    config, _ = parse_command_line(["--run.dir", "runs/a?b", "--run.init_from", "file:///runs/other"])
    assert (dump(config)["run"]["dir"], config.run.init_from) == ("runs/a?b", "/runs/other")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            ["--run.dir", "s3:/bucket/run"],
            r"run.dir s3:/bucket/run: write it as s3://BUCKET/FOLDER, or a path",
        ),
        (["--run.dir", "simplecache::s3://bucket/run"], "run.dir simplecache::s3://bucket/run: write it as"),
        (
            ["--run.local_dir", "s3://bucket/run"],
            "run.local_dir s3://bucket/run: object storage .* not supported",
        ),
        (["--run.local_dir", "here"], "run.local_dir is for a run whose run.dir is a URL"),
        (["--run.dir", "s3://b/r", "--run.upload_every", "0"], "run.upload_every must be 1 to 3600 s"),
    ],
)
def test_a_url_that_cannot_be_a_run_folder_is_refused(words: list[str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_command_line(words)


def test_no_configuration_can_run_code(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for value in (f"!!python/object/apply:os.system ['touch {trace}']", f"!!python/name:os.system {trace}"):
        file = tmp_path / "config.yaml"
        file.write_text(f"data:\n  train: {value}\n")
        with pytest.raises(SystemExit):
            parse_command_line(["--config", str(file)])
    for key in ("class_path", "init_args"):
        with pytest.raises(SystemExit):
            parse_command_line([f"--model.{key}", "os.system"])
    assert not trace.exists()
