"""The wheel, the source distribution and the editable install: what is in them, and that they train.

Installed programs run in an empty folder and see the libraries of this environment, but not this checkout.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import REPO, arguments, free_port, metrics, run, status

from awtpn.config.project_files import shared_files

VERSION = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["version"]
INFO = f"awtpn_at_scale-{VERSION}.dist-info"
SOURCES = ["awtpn", "shards", "configs", "launch", "tests"]
SOURCES += ["pyproject.toml", "setup.py", "README.md", "LICENSE"]
STEPS = 4
SETTINGS = {"train.max_steps": STEPS, "train.log_every": 1, "model.dropout": 0.0}

# What an installed package finds. It starts no training, so one process asks everything.
PROBE = """
import importlib.util, json
import awtpn, shards
from awtpn.config.command_line import parse_command_line
from awtpn.config import project_files
from awtpn.experiments.runner import TRAIN_SCRIPT
from awtpn.run.provenance import commit
config, launch = parse_command_line(["--config", "meld", "--deepspeed", "zero3"])
print(json.dumps({
    "packages": [awtpn.__file__, shards.__file__],
    "launch": importlib.util.find_spec("launch") is not None,
    "root": str(project_files.ROOT),
    "script": str(TRAIN_SCRIPT),
    "data": config.data.train,
    "deepspeed": launch.deepspeed_file,
    "commit": commit(),
}))
"""


def start(folder: Path, command: Sequence[str | Path]) -> str:
    """Run a command in `folder`, without this checkout on Python's path; returns its output."""
    words = ["env", "-C", str(folder), *map(str, command)]
    code, output = run(words, folder.with_name(f"{folder.name}.log"), PYTHONPATH="")
    assert code == 0, f"{words}\n{output}"
    return output


def make_environment(folder: Path, *install: str | Path) -> Path:
    """A virtual environment with this project alone, then with the libraries of ours; returns its Python."""
    folder.mkdir()
    start(folder, [sys.executable, "-m", "venv", "--without-pip", "."])
    python = folder / "bin" / "python"
    start(folder, [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", *install])
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    assert libraries
    (site_packages(python) / "libraries.pth").write_text("\n".join(libraries))
    return python


def site_packages(python: Path) -> Path:
    [found] = python.parent.parent.glob("lib/python*/site-packages")
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout, since building writes into the folder that it builds from."""
    folder = tmp_path_factory.mktemp("source") / "project"
    folder.mkdir()
    for name in SOURCES:
        if (REPO / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(REPO / name, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(REPO / name, folder)
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    start(source, [sys.executable, "-m", "build", "--outdir", out])
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"awtpn_at_scale-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment in which the wheel is installed."""
    python = make_environment(tmp_path_factory.mktemp("installed") / "venv", "--no-index", wheel)
    assert {path.name for path in site_packages(python).iterdir()} == {
        *("awtpn", "shards", INFO, "libraries.pth")
    }
    return python


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def names_in(wheel: Path) -> set[str]:
    """The files that a wheel installs, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.startswith(f"{INFO}/")}


def expected_files() -> dict[str, str]:
    """The file of this checkout from which each file of the wheel comes."""
    packages = [path for name in ("awtpn", "shards") for path in (REPO / name).rglob("*") if path.is_file()]
    modules = [path.relative_to(REPO).as_posix() for path in packages if "__pycache__" not in path.parts]
    shared = [*shared_files(), "launch/__init__.py"]
    return {name: name for name in modules} | {f"awtpn/share/{name}": name for name in shared}


def test_the_wheel_has_every_file_and_no_other(wheel: Path) -> None:
    assert names_in(wheel) == expected_files().keys()
    with zipfile.ZipFile(wheel) as archive:
        for name, origin in expected_files().items():
            assert archive.read(name) == (REPO / origin).read_bytes()


def test_the_source_distribution_makes_the_wheel_of_the_checkout(
    source: Path, built: Path, wheel: Path, tmp_path: Path
) -> None:
    """`pip install .` builds from the checkout, also where an earlier build left a module that is gone."""
    stale = source / "build" / "lib" / "awtpn" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    root = f"awtpn_at_scale-{VERSION}"
    with tarfile.open(built / f"{root}.tar.gz") as archive:
        assert {f"{root}/{name}" for name in expected_files().values()} <= set(archive.getnames())
    start(source, [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "direct"])
    assert names_in(tmp_path / "direct" / wheel.name) == names_in(wheel)


def test_the_metadata_is_what_an_index_accepts(built: Path) -> None:
    files = sorted(built.iterdir())
    assert len(files) == 2
    start(built, [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *files])


def test_an_installed_wheel_finds_its_files(python: Path, empty: Path) -> None:
    # A folder of another project, into which someone installs the wheel, is not where our commit is.
    (site_packages(python) / ".git").mkdir(exist_ok=True)
    found = json.loads(start(empty, [python, "-c", PROBE]).splitlines()[-1])
    share = site_packages(python) / "awtpn" / "share"
    assert found == {
        "packages": [str(site_packages(python) / name / "__init__.py") for name in ("awtpn", "shards")],
        "launch": False,
        "root": str(share),
        "script": str(share / "launch" / "train.py"),
        "data": "data/meld",
        "deepspeed": str(share / "configs" / "deepspeed" / "zero3.json"),
        "commit": None,
    }
    for program in ([python.with_name("awtpn")], [python, "-m", "awtpn.cli"]):
        assert start(empty, [*program, "--version"]) == f"awtpn {VERSION}\n"


def test_an_editable_install_finds_the_files_of_its_checkout(
    source: Path, tmp_path: Path, empty: Path
) -> None:
    python = make_environment(tmp_path / "venv", "--editable", source)
    found = json.loads(start(empty, [python, "-c", PROBE]).splitlines()[-1])
    assert found["packages"] == [str(source / name / "__init__.py") for name in ("awtpn", "shards")]
    assert found["root"] == str(source)
    assert found["deepspeed"] == str(source / "configs" / "deepspeed" / "zero3.json")
    assert start(empty, [python.with_name("awtpn"), "--version"]) == f"awtpn {VERSION}\n"


def test_the_commands_of_the_pages_work_where_init_was_run(
    python: Path, empty: Path, demo_cache: Path
) -> None:
    """Cross-validation starts the wheel's own copy of launch/train.py."""
    assert "next: awtpn train\n" in start(empty, [python.with_name("awtpn"), "init"])
    settings = arguments(SETTINGS | {"data.cache_dir": demo_cache})
    folds = ["--seeds", "0", "--no-baseline", "--dir", "runs/cv"]
    start(empty, [python, "launch/cross_validate.py", "--config", "configs/demo.yaml", *folds, *settings])
    assert (empty / "runs" / "cv" / "report.html").is_file()
    assert "complete already" in start(empty, [python.with_name("awtpn"), "init"])


# Name -> its words and the number of ranks. Launchers are started as modules, since their own programs start
# the Python of this environment.
LAUNCHERS: dict[str, tuple[str, int]] = {
    "awtpn": ("-m awtpn.cli", 1),
    "accelerate": ("-m accelerate.commands.launch -m awtpn.cli", 1),
    "accelerate --cpu": ("-m accelerate.commands.launch --cpu --num_processes 2 -m awtpn.cli", 2),
    "torchrun": ("-m torch.distributed.run --standalone --nproc-per-node 2 -m awtpn.cli", 2),
    "deepspeed": (
        "-m deepspeed.launcher.runner --num_gpus 2 --master_port PORT --module awtpn.cli",
        2,
    ),
}


@pytest.mark.usefixtures("deepspeed_operator")
@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_wheel_trains_under_every_launcher(
    name: str, python: Path, empty: Path, demo_cache: Path
) -> None:
    words, ranks = LAUNCHERS[name]
    launcher = words.replace("PORT", str(free_port())).split()
    settings = arguments(SETTINGS | {"data.cache_dir": demo_cache, "run.dir": empty / "run"})
    start(empty, [python, *launcher, "train", "--config", "demo", *settings])
    found = status(empty / "run")
    assert (found["status"], found["ranks"], found["commit"]) == ("done", ranks, None)
    assert [line["step"] for line in metrics(empty / "run")] == list(range(1, STEPS + 1))
