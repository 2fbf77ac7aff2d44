"""Values of `data.select` and `data.storage_options`: text in quotes stays text, wherever it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from shards_support import pack, utterance

from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config, dump_yaml
from awtpn.config.settings import SelectConfig
from awtpn.experiments.folds import Fold, Splits
from shards import FeatureStream

WRITTEN = {
    "actor": "04",
    "vote": "no",
    "mark": "null",
    "power": "1e3",
    "said": "true",
    "day": "2020-01-01",
    "many": ["01", "no"],
    "fold": 4,
    "gain": 0.5,
    "flag": True,
}
IN_YAML = """
data:
  train: here
  select:
    test: {actor: "04", vote: "no", mark: "null", power: "1e3", said: "true", day: "2020-01-01",
           many: ["01", "no"], fold: 4, gain: 0.5, flag: true}
  storage_options: {key: "0123", secret: "1e5", anon: false, client_kwargs: {token: "no", port: 9000}}
"""
OPTIONS = {"key": "0123", "secret": "1e5", "anon": False, "client_kwargs": {"token": "no", "port": 9000}}


def same(found: Any, wanted: Any) -> bool:
    """Alike to the type: True is not 1."""
    return repr(found) == repr(wanted)


def test_a_quoted_value_stays_text_in_a_file_and_in_the_runs_own_record(tmp_path: Path) -> None:
    file, again = tmp_path / "s.yaml", tmp_path / "config.yaml"
    file.write_text(IN_YAML)
    config = parse_command_line(["--config", str(file)])[0]
    assert same(config.data.select.test, WRITTEN)
    assert same(config.data.storage_options, OPTIONS)
    again.write_text(dump_yaml(config))
    assert same(parse_command_line(["--config", str(again)])[0].data.select.test, WRITTEN)
    assert same(yaml.safe_load(again.read_text())["data"]["select"]["test"], WRITTEN)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (['--data.select.test={actor: "04"}'], {"actor": "04"}),
        (["--data.select.test", '{"actor": ["04", "no"], "fold": 4}'], {"actor": ["04", "no"], "fold": 4}),
        (["--data.select.test.fold", "4"], {"fold": 4}),
        (["--data.select.test.fold=[0, 1]"], {"fold": [0, 1]}),
        (['--data.select.test.actor="04"', "--data.select.test.fold=2"], {"actor": "04", "fold": 2}),
        (["--data.select.test.session=Ses05"], {"session": "Ses05"}),
    ],
)
def test_a_quoted_value_stays_text_on_the_command_line(arguments: list[str], value: dict[str, Any]) -> None:
    config = parse_command_line(["--data.train", "here", *arguments])[0]
    assert same(config.data.select.test, value)


def test_options_of_a_store_are_what_they_say() -> None:
    words = [
        "--data.train=s3://b/d",
        '--data.storage_options={"key": "0123"}',
        "--data.storage_options.anon=false",
    ]
    assert same(parse_command_line(words)[0].data.storage_options, {"key": "0123", "anon": False})


@pytest.mark.parametrize("value", ["04", "no", "null", "1e3", 4, 0.5, 1e-05, 1e22, True, 'it\'s "so"'])
def test_the_values_of_folds_are_kept(tmp_path: Path, value: Any) -> None:
    trial = Splits("by", "url", []).of_fold(Fold(value, [value]), [], [0], tmp_path)[0]
    select = parse_command_line(trial.job.arguments)[0].data.select
    assert same((select.train, select.test), ({"by": [value]}, {"by": [value]}))


@pytest.mark.parametrize("value", [None, {"a": 1}, [None], [[1]]])
def test_what_no_metadata_can_be_is_refused(value: Any) -> None:
    config = Config()
    config.data.select = SelectConfig(test={"actor": value})
    with pytest.raises(ValueError, match=r"data.select.test.actor takes a value or a list of them, not"):
        config.validate()


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ({"actor": 4}, r'has actor \[4\]; it has \[.01., .02.\] \(the column is text: write .* as "04"\)'),
        (
            {"fold": "1"},
            r"has fold \['1'\]; it has \[0, 1, 2\] \(the column holds numbers: .* without quotes",
        ),
        ({"fold": True}, r"has fold \[True\]"),
        ({"flag": 1}, r"has flag \[1\]; it has \[False, True\] \(the column is true or false"),
        ({"fold": {"a": 1}}, r"has fold \[\{'a': 1\}\]"),
        ({"actor": "03"}, r"has actor \['03'\]; it has \['01', '02'\]$"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_fix(
    tmp_path: Path, select: dict[str, Any], message: str
) -> None:
    metas = [{"actor": f"0{i % 2 + 1}", "fold": i % 3, "flag": i % 2 == 0} for i in range(6)]
    pack([utterance(i, meta=meta) for i, meta in enumerate(metas)], tmp_path / "d")
    with pytest.raises(ValueError, match=message):
        FeatureStream(str(tmp_path / "d"), select=select)


@pytest.mark.parametrize("text", ["[" * 20_000, "{a: " * 20_000, "a: &a {b: *a}\n", "- " * 20_000])
def test_a_file_nested_without_end_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "deep.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse_command_line(["--config", str(tmp_path / "deep.yaml")])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {tmp_path / 'deep.yaml'}")


def test_a_column_is_named_by_text() -> None:
    config = Config()
    config.data.select = SelectConfig(test={True: 1})
    with pytest.raises(ValueError, match=r"data.select.test: True is no column name; write it in quotes"):
        config.validate()


@pytest.mark.parametrize("depth", [150, 500, 20_000])
@pytest.mark.parametrize("closed", [False, True])
def test_a_word_nested_without_end_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], depth: int, closed: bool
) -> None:
    word = "--data.select.test=" + "{a: " * depth + "}" * (depth * closed)
    with pytest.raises((SystemExit, ValueError)) as caught:
        parse_command_line(["--data.train=here", word])
    told = capsys.readouterr().err if caught.type is SystemExit else f"{caught.value}\n"
    assert told.count("\n") == 1
    assert len(told) < 300
