"""The Dockerfile, as far as it can be tested without a registry: its steps run by shell, in a folder as root.

`FROM` is not run: this machine is the base. apt-get only simulates, and pip takes the libraries of this
environment; the rest is done as it is written.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from support import LIMIT, REPO, environment

FILE = REPO / "launch" / "Dockerfile"
IGNORED = FILE.with_name("Dockerfile.dockerignore")
# Folders of the image, which the test has in a folder of its own.
PLACES = re.compile(r"(?<![\w./])/(?:tmp/awtpn|opt/awtpn|awtpn|var/lib/apt/lists)\b")
STAND_INS = {
    "apt-get": '[ "$1" = update ] || exec /usr/bin/apt-get --simulate "$@"',
    "groupadd": 'exec /usr/sbin/groupadd --prefix "$IMAGE" "$@"',
    "useradd": 'exec /usr/sbin/useradd --prefix "$IMAGE" "$@"',
}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: name and text, continued lines joined."""
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, text.strip()) for name, _, text in (line.partition(" ") for line in joined)]


def is_sent(path: str) -> bool:
    """Whether docker sends a file of the project to the build, by the last line of .dockerignore about it."""
    sent = True
    for line in IGNORED.read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#"):
            parts = Path(path).parts
            tops = ["/".join(parts[: i + 1]) for i in range(len(parts))]
            names = parts if pattern.startswith("**/") else tops
            if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
                sent = line.startswith("!")
    return sent


def test_every_instruction_is_known() -> None:
    found = instructions()
    assert found[0][0] == "FROM"
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", found[0][1])
    assert {name for name, _ in found} == {"FROM", "RUN", "ENV", "COPY", "WORKDIR", "USER", "CMD"}
    texts = [text for _, text in found]
    assert texts[-3:] == ["/awtpn", "10001", '["awtpn", "--help"]'], "the last user is not root"
    assert not any(re.search("KEY|SECRET|TOKEN|PASSWORD", text) for text in texts)
    # Under pyxis they would have precedence over what slurm.sbatch exports.
    assert [text for name, text in found if name == "ENV"] == ["PATH=/opt/awtpn/bin:$PATH"]


def test_docker_gets_what_is_installed_and_no_more() -> None:
    kept = subprocess.run(["git", "ls-files"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    sent = {path for path in kept.splitlines() if is_sent(path)}
    for path in ("pyproject.toml", "setup.py", "LICENSE", "awtpn/cli/__main__.py", "launch/train.py"):
        assert path in sent
    assert not any(path.startswith(("tests/", ".ci/", ".git")) for path in sent)
    assert not is_sent("runs/meld/config.yaml")
    assert not is_sent("awtpn/cli/__pycache__/main.pyc")
    assert not is_sent(".venv/bin/python")


def test_its_extras_exist() -> None:
    extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (text,) = [text for name, text in instructions() if name == "RUN" and "pip install" in text]
    named = re.findall(r"\[([\w,]+)\]", text)[0].split(",")
    assert set(named) <= set(extras)
    assert {"s3", "gcs"} <= set(named), "the recipes have run folders there"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the build of an image does")
@pytest.mark.skipif(not shutil.which("useradd", path="/usr/sbin"), reason="needs useradd")
def test_its_steps_make_an_installation_that_trains(tmp_path: Path) -> None:
    image, programs = tmp_path / "image", tmp_path / "programs"
    for folder in ("etc", "home", "tmp", "opt"):
        (image / folder).mkdir(parents=True)
    for name in ("passwd", "group", "shadow", "gshadow", "login.defs"):
        if (source := Path("/etc") / name).exists():
            shutil.copy(source, image / "etc" / name)
    programs.mkdir()
    for name, text in STAND_INS.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    variables = environment(
        IMAGE=str(image),
        PATH=f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin",
        PIP_NO_DEPS="1",
        PYTHONPATH="",
        HOME=str(tmp_path),
    )
    if not list(Path("/var/lib/apt/lists").glob("*_Packages*")) or not shutil.which("apt-get"):
        (programs / "apt-get").write_text("#!/bin/bash\n")  # nothing to simulate with
    folder = image
    for name, text in instructions():
        placed = PLACES.sub(lambda found: f"{image}{found[0]}", text)
        if name == "COPY":
            copy_context(*placed.split())
        elif name == "ENV":
            key, _, value = placed.partition("=")
            variables[key] = value.replace("$PATH", variables["PATH"])
        elif name == "WORKDIR":
            folder = Path(placed)
        elif name == "RUN":
            assert_runs(["sh", "-euc", placed], folder, variables)
            if "-m venv" in placed:
                use_libraries_of_this_environment(image / "opt" / "awtpn")
    users = (image / "etc" / "passwd").read_text()
    assert re.search(r"^awtpn:x:10001:10001:.*:/home/awtpn:", users, re.MULTILINE)
    assert not (image / "tmp" / "awtpn").exists()
    assert ((image / "awtpn").stat().st_uid, (image / "awtpn").stat().st_gid) == (10001, 10001)
    assert_runs(["awtpn", "--version"], folder, variables)
    train = ["python", "launch/train.py", "--config", "configs/demo.yaml", "--train.max_steps", "2"]
    assert_runs([*train, "--model.shared_dim", "8", "--train.pictures", "never"], folder, variables)
    assert list((folder / "runs").glob("*/results.json"))


def copy_context(source: str, target: str) -> None:
    """COPY of the whole context."""
    assert source == "."

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [name for name in names if not is_sent(str((Path(folder) / name).relative_to(REPO)))]

    shutil.copytree(REPO, target, ignore=ignored)


def use_libraries_of_this_environment(venv: Path) -> None:
    own = sysconfig.get_path("purelib", vars={"base": str(venv)})
    lines = [path for path in sys.path if path.endswith("site-packages")]
    Path(own, "libraries.pth").write_text("\n".join(lines) + "\n")


def assert_runs(command: list[str], folder: Path, variables: dict[str, str]) -> None:
    ran = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=LIMIT)
    assert ran.returncode == 0, f"{shlex.join(command)}\n{ran.stdout}{ran.stderr}"[-4000:]
