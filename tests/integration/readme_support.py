"""Commands of the pages: find them, say how each is tested, and run them in a folder of stand-ins."""

from __future__ import annotations

import ast
import builtins
import contextlib
import csv
import re
import runpy
import shlex
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from support import CLASSES, DIMS, REPO, run

# The stand-in corpora are those of the unit tests.
sys.path.append(str(REPO / "tests" / "unit"))

from corpora_support import (
    put,
    write_clip_table,
    write_iemocap,
    write_meld,
    write_mmsa,
    write_mosei,
    write_tree,
)
from encoders_support import AUDIO, VIDEO

from awtpn.cli import main as awtpn
from awtpn.experiments import ablation, crossvalidation
from awtpn.experiments.runner import Job
from awtpn.training.trainer import main as train

PROGRAMS = {
    *("awtpn", "python", "python3", "pip", "pytest", "pre-commit", "ruff", ".", "source"),
    *("accelerate", "torchrun", "deepspeed", "sbatch", "srun", "kubectl", "docker", "tensorboard"),
}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")

# A training of two steps.
SHORT = "--train.max_steps 2 --model.shared_dim 8 --train.pictures never"


# --- Find commands -------------------------------------------------------------------------------


def commands_of(text: str) -> list[str]:
    """Every command once, in the order of the text: lines of blocks without a language, and spans of code.

    A command begins with one of `PROGRAMS` and has a further word; a chain `a && b` is several.
    """
    lines: list[str] = []
    position = 0
    for block in FENCED.finditer(text):
        lines += SPAN.findall(text[position : block.start()])
        if block[1] in ("", "bash", "sh", "console"):
            lines += block[2].replace("\\\n", " ").splitlines()
        position = block.end()
    lines += SPAN.findall(text[position:])
    found = [" ".join(part.split()) for line in lines for part in without_comment(line).split("&&")]
    known = [command for command in found if command.partition(" ")[0] in PROGRAMS]
    # A single word only names a program. A drawing does not count: its lines begin with other words.
    return list(dict.fromkeys(command for command in known if " " in command or command == "pytest"))


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#\s.*$", "", line)


def blocks_of(text: str, language: str) -> list[str]:
    """The blocks of a language."""
    return [block[2] for block in FENCED.finditer(text) if block[1] == language]


# --- How a command is tested ---------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Run in the sandbox, with words swapped, and others appended to make it short."""

    swap: Mapping[str, str] = field(default_factory=dict)
    append: str = ""
    instead: Sequence[str] = ()
    """Full commands, where a page writes a pattern (`A | B URL`)."""
    makes: str = ""
    """Removed before the command runs: a stand-in, or the output of an earlier command."""
    leaves: str = ""
    """A file that exists afterwards."""
    says: str = ""
    """A part of the output."""

    def lines(self, command: str) -> list[str]:
        if self.instead:
            return list(self.instead)
        for old, new in self.swap.items():
            assert old in command, f"{old!r} is swapped, but is not in: {command}"
            command = command.replace(old, new)
        return [f"{command} {self.append}".strip()]


@dataclass(frozen=True)
class Elsewhere:
    """Run by other tests: `folder/file.py::function` under tests/."""

    tests: Sequence[str]

    def problem(self) -> str | None:
        for test in self.tests:
            file, _, function = test.partition("::")
            path = REPO / "tests" / file
            if not path.is_file():
                return f"there is no tests/{file}"
            tree = ast.parse(path.read_text())
            if function not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
                return f"tests/{file} has no {function}"
        return None


@dataclass(frozen=True)
class Installs:
    """`.ci/run` runs it on a clean checkout, or installs a superset."""

    def problem(self, command: str) -> str | None:
        extras = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        if package := re.fullmatch(r"pip install (\w+)", command):
            there = any(one.startswith(f"{package[1]}>=") for one in extras["test"])
            return None if there else f"the extra test, which .ci/run installs, is without {package[1]}"
        if extra := re.search(r"\[(\w+)\]", command):
            if extra[1] not in extras:
                return f"pyproject.toml has no extra {extra[1]}"
            if extra[1] != "test" and not any(extra[1] in one for one in extras["test"] if "awtpn" in one):
                return f"the extra test, which .ci/run installs, is without {extra[1]}"
            return None
        script = (REPO / ".ci" / "run").read_text()
        wanted = command.replace("pip install -e .", "pip install --quiet --editable")
        return None if wanted in script else f".ci/run does not run it: {wanted}"


# --- Run commands --------------------------------------------------------------------------------


class Sandbox:
    """A folder with all files that the commands name, and this checkout's scripts and configurations."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache
        for name in ("launch", "configs", "tests"):
            (root / name).symlink_to(REPO / name)
        write_iemocap(root / "IEMOCAP_full_release", sessions=range(1, 6))
        write_meld(root / "MELD.Raw")
        write_mosei(root / "CMU_MOSEI")
        shutil.copy(
            root / "CMU_MOSEI" / "CMU_MOSEI_VisualOpenFace2.csd",
            root / "CMU_MOSEI" / "CMU_MOSEI_VisualFacet42.csd",
        )
        write_tree(root / "recordings")
        put("both.mp4", root / "clip.mp4")
        write_texts(root / "texts")
        (root / "note.txt").write_text("I am so happy")
        write_arrays(root / "features.npz")
        write_arrays(root / "ravdess_features.npz")
        write_table(root / "features.csv", {})
        write_targets(root)
        AUDIO["wavlm"](root / "hub" / "wavlm", num_hidden_layers=9)
        VIDEO["clip"](root / "hub" / "clip")
        for line in (
            "awtpn extract MELD.Raw data/meld --format meld",
            "awtpn extract recordings data/clips --audio waveform --video frames --video_jpeg 90",
            "awtpn extract texts data/texts --audio none --video none --text chargrams",
            "awtpn extract IEMOCAP_full_release data/iemocap --format iemocap --limit 20",
            "awtpn pack ravdess_features.npz data/ravdess --format npz",
            f"awtpn train --config configs/meld.yaml --run.dir runs/meld {SHORT}",
            f"awtpn train --data.train data/texts --model.modalities text --run.dir runs/meld-text {SHORT}",
            f"python launch/train.py --config configs/iemocap.yaml --run.dir runs/try1 {SHORT}",
            "awtpn export runs/try1 my-model",
        ):
            self.run(line)

    def run(self, line: str) -> str:
        """Run a command to its end; returns its output.

        Raises:
            AssertionError: the command failed.
        """
        words = shlex.split(line)
        if words[0] == "awtpn":
            return self._here(line, words, lambda: awtpn(words[1:]))
        if words[0] == "python" and words[1] == "-c":
            return self._here(line, words[1:], lambda: exec(words[2], {"help": builtins.help}))
        if words[0] == "python":
            return self._here(line, words[1:], lambda: runpy.run_path(words[1], run_name="__main__"))
        code, output = run(["env", "-C", str(self.root), *words], self.root / "log")
        assert code == 0, f"{line}\nexit code {code}:\n{output}"
        return output

    def _here(self, line: str, argv: Sequence[str], action: Callable[[], object]) -> str:
        """In this process, where the slow imports are done."""
        output = StringIO()
        code: object = 0
        with (
            signals_kept(),
            contextlib.chdir(self.root),
            patch.object(sys, "argv", [str(word) for word in argv]),
            patch.object(sys, "path", [*sys.path]),
            patch.object(ablation, "train_all", train_here),
            patch.object(crossvalidation, "train_all", train_here),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            try:
                action()
            except SystemExit as end:
                code = end.code
        assert code in (0, None), f"{line}\nexit code {code}:\n{output.getvalue()}"
        return output.getvalue()

    def clear(self, name: str) -> None:
        """Remove what a command will write."""
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Scripts install signal handlers; restore those of pytest afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_here(jobs: Sequence[Job], *_: Any, **__: Any) -> None:
    """Replaces `awtpn.experiments.runner.train_all`, which starts a process for each run."""
    for job in jobs:
        train(job.arguments)


# --- Stand-ins -----------------------------------------------------------------------------------


def write_arrays(path: Path) -> None:
    """Packed arrays as `--format npz` reads them: 24 utterances in two folds."""
    rng = np.random.default_rng(0)
    label = np.arange(24) % len(CLASSES)
    features = {name: rng.normal(size=(24, 3, dim)) + label[:, None, None] for name, dim in DIMS.items()}
    np.savez(
        path,
        ids=np.array([f"u{i}" for i in range(24)]),
        label=label,
        label_names=np.array(CLASSES),
        fold=np.arange(24) // 12,
        **features,
    )


def write_texts(root: Path) -> None:
    """What is said, as `--format recordings` reads it, without recordings."""
    for split in ("train", "val", "test"):
        for label in CLASSES:
            path = root / split / label / "a.txt"
            path.parent.mkdir(parents=True)
            path.write_text(f"In {split} I am {label}")


def write_targets(root: Path) -> None:
    """Files with values and several labels: a table of features, a pickle of MMSA, and labels of MER."""
    numbers = np.arange(12)
    of_utterance = {
        "valence": 1 + numbers % 5,
        "arousal": 1 + numbers % 3,
        "happy": numbers % 2,
        "sad": numbers % 3,
        "emotions": [("joy", "joy;anger:0.5", "none")[i % 3] for i in numbers],
    }
    write_table(root / "clips.csv", of_utterance)
    write_mmsa(root / "unaligned_39.pkl")
    rows = [{"name": f"sample_{i}", "discrete": CLASSES[i % 2], "valence": i - 1} for i in range(3)]
    write_clip_table(root / "label-disdim.csv", rows)
    for row in rows:
        put("both.mp4", root / "video-labeled" / f"{row['name']}.mp4")


def write_table(path: Path, further: Mapping[str, Sequence[Any]]) -> None:
    """A table of feature files, one per utterance and modality, and further columns of 12 cells each."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "split", "label", *DIMS, *further])
        for i in range(12):
            names = {name: f"{path.stem}-{i}-{name}.npy" for name in DIMS}
            for name, dim in DIMS.items():
                np.save(path.with_name(names[name]), rng.normal(size=(3, dim)).astype(np.float32))
            row = [f"u{i}", ["train", "val", "test"][i % 3], CLASSES[i // 4], *names.values()]
            writer.writerow([*row, *(cells[i] for cells in further.values())])
