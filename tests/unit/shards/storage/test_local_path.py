"""What a user names as a place on this machine becomes that place, and never a folder whose name is a URL."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import ALONE

from awtpn import Predictor
from awtpn.cli import main
from awtpn.config.command_line import parse_command_line
from awtpn.config.schema import Config
from awtpn.distributed import doctor
from awtpn.run.folder import prepare_run_dir
from shards.format.schema import MANIFEST
from shards.storage.local_path import local_or_url, local_path
from shards.storage.store import open_store

NO_URL = "s3://bucket/run: object storage and other URLs are not supported yet"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and an empty folder to stand in that must stay so."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return home


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("runs/demo", "runs/demo"),
        ("USER/MODEL", "USER/MODEL"),
        ("~", "HOME"),
        ("~/run", "HOME/run"),
        ("./~", "~"),
        ("a b/ü😀\nx", "a b/ü😀\nx"),
        ("file:///tmp/run", "/tmp/run"),
        ("file://localhost/tmp/run", "/tmp/run"),
        ("FILE:/tmp/run", "/tmp/run"),
        ("runs/a:b", "runs/a:b"),
    ],
)
def test_local_places(text: str, path: str, home: Path) -> None:
    assert local_path(text) == Path(path.replace("HOME", str(home)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://bucket/run", NO_URL),
        ("gs://bucket/run", r"\(gs: here\): give a path on this machine"),
        ("https://me:secret@host/run?token=secret", r"^run\.dir https://host/run: object storage"),
        ("simplecache::s3://bucket/run", "object storage"),
        (Path("s3://bucket/run"), "object storage"),  # where the second / is lost already
        ("file://bucket/run", r"names a file of the host 'bucket'; write file:///ABSOLUTE/PATH"),
        ("~nobody-of-that-name/run", "no home folder is known for ~nobody-of-that-name; .*: ./~nobody-of"),
    ],
)
def test_other_places_are_refused_by_name(text: str | Path, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refusal:
        local_path(text, "run.dir")
    assert "secret" not in str(refusal.value)


def test_datasets_keep_their_urls(home: Path) -> None:
    assert local_or_url("s3://bucket/meld#val") == "s3://bucket/meld#val"
    assert local_or_url("file:///data/meld#val") == "/data/meld#val"
    assert local_or_url("~/meld") == f"{home}/meld"


@pytest.mark.parametrize("key", ["run.dir", "run.resume", "run.init_from", "data.cache_dir"])
def test_keys_of_the_configuration(key: str, home: Path) -> None:
    section, _, name = key.partition(".")
    config, _ = parse_command_line([f"--{key}=~/x"])
    assert getattr(getattr(config, section), name) == f"{home}/x"
    if key in ("run.dir", "run.resume", "run.init_from"):  # run folders may be in object storage
        config, _ = parse_command_line([f"--{key}=s3://bucket/run"])
        assert getattr(config.run, name) == "s3://bucket/run"
        return
    with pytest.raises(ValueError, match=rf"^{key} {NO_URL}"):
        parse_command_line([f"--{key}=s3://bucket/run"])


def test_configuration_files(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "c.yaml").write_text("train: {epochs: 3}")
    assert parse_command_line(["--config", "~/c.yaml"])[0].train.epochs == 3
    assert parse_command_line([f"--config=file://{home}/c.yaml"])[0].train.epochs == 3
    with pytest.raises(SystemExit):
        parse_command_line(["--config", "s3://bucket/run"])
    assert f"error: --config {NO_URL}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["export", "runs/demo", "URL"],
        ["report", "runs/demo", "--out", "URL"],
        ["report", "runs/demo", "--markdown", "URL"],
        ["push", "URL", "USER/MODEL"],
        ["predict", "model", "clip.wav", "--out", "URL"],
        ["predict", "model", "clip.wav", "--png", "URL"],
        ["doctor", "--run_dir", "URL"],
        ["bench", "--out", "URL"],
        ["bench", "--scratch", "URL"],
    ],
    ids=" ".join,
)
def test_commands_make_no_folder_of_that_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([word.replace("URL", "s3://bucket/run") for word in words])
    assert stop.value.code == 2
    assert NO_URL in capsys.readouterr().err.splitlines()[0]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["export", "URL", "out"],
        ["report", "URL"],
        ["compare", "URL", "runs/demo"],
        ["predict", "URL", "clip.wav"],
        ["runs", "list", "URL"],
        ["runs", "pull", "URL", "out"],
        ["runs", "delete", "URL", "--yes"],
    ],
    ids=" ".join,
)
def test_commands_on_runs_at_a_url_make_none_either(words: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"error: memory://nobody/run is no"):
        main([word.replace("URL", "memory://nobody/run") for word in words])
    assert list(Path().iterdir()) == []


def test_models_and_caches_likewise() -> None:
    with pytest.raises(ValueError, match=NO_URL):
        Predictor.from_pretrained("s3://bucket/run")
    with pytest.raises(ValueError, match=f"cache_dir {NO_URL}"):
        open_store("memory://corpus", cache_dir="s3://bucket/run")
    assert list(Path().iterdir()) == []


# --- What cannot be a run folder -----------------------------------------------------------------


def prepare(**of_run: Any) -> Path:
    config = Config()
    for key, value in of_run.items():
        setattr(config.run, key, str(value))
    return prepare_run_dir(config, ALONE)


def everything(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text() if path.is_file() else "" for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("made", "run_dir", "told"),
    [
        ("here/file", "file", "run.dir file is a file: choose another run.dir"),
        (f"here/data/{MANIFEST}", "data", f"run.dir data holds a packed dataset ({MANIFEST})"),
        ("here/run/config.yaml", "run", "run/config.yaml is not the record of a run's settings"),
        ("here/file", f"new/{'x' * 256}", "File name too long"),
        ("here/file", "/dev/null/run", "cannot write to /dev/null/run"),
        ("here/file", "file/run", "file/run"),
        ("here/file", "a\0b", "null"),
    ],
)
def test_what_cannot_be_a_run_folder(made: str, run_dir: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / made
    file.parent.mkdir(exist_ok=True)
    file.write_text("a: [")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=re.escape(told)) as refusal:
        prepare(dir=run_dir)
    assert "\n" not in str(refusal.value), "one line"
    assert everything(tmp_path) == before, "nothing is made or changed"


@pytest.mark.parametrize("resume", ["/etc", "nowhere"])
def test_what_cannot_be_resumed_leaves_nothing(resume: str, tmp_path: Path) -> None:
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"^run\.resume") as refusal:
        prepare(dir="run", resume=resume)
    assert "\n" not in str(refusal.value)
    assert everything(tmp_path) == before


def test_a_refused_start_and_the_doctor_leave_no_folder(tmp_path: Path) -> None:
    config = Config()
    config.run.dir, config.data.train = "new/run", "nowhere"
    with pytest.raises(ValueError, match=r"this run cannot work: rank 0 on .* cannot read nowhere"):
        prepare_run_dir(config, ALONE)
    doctor.check_cluster(ALONE, Path("new/run"), [], keep_folder=False)
    assert list(Path().iterdir()) == []
    assert prepare(dir="new/run").is_dir()


def test_a_record_of_settings_is_no_obstacle() -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump({"run": {"seed": 1}}))
    assert prepare(dir="run") == Path("run")
    assert prepare(dir=".") == Path()
