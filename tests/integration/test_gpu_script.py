"""`tests/gpu/run.sh` on a machine without a GPU: every command runs, and a part that fails stops no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import REPO, run

from awtpn.bench.gpu.session import NO_GPU, PARTS, REHEARSED

SCRIPT = str(REPO / "tests" / "gpu" / "run.sh")

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def rows(file: Path) -> dict[str, str]:
    """By title of a part its status, from the file's first table."""
    table = [line.split(" | ") for line in file.read_text().splitlines() if line.startswith("| ")]
    return {row[0].removeprefix("| "): row[1] for row in table[1 : 1 + len(PARTS)]}


def test_without_a_gpu_it_runs_to_the_end(tmp_path: Path) -> None:
    """All commands are right, without DeepSpeed and a network; nothing claims to be a GPU's figure."""
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "deepspeed.py").write_text("raise ImportError('DeepSpeed is not here')\n")
    out, path = str(tmp_path / "made"), str(tmp_path / "absent")
    code, output = run(["bash", SCRIPT], tmp_path / "log", OUT=out, PYTHONPATH=path)
    file = tmp_path / "made" / "gpu.md"
    assert code == 0, output + file.read_text()
    text = file.read_text()
    assert rows(file) == {part.title: REHEARSED if part.rehearsal else NO_GPU for part in PARTS}
    assert "**Skipped: no CUDA device.**" in text
    assert "Attention on the CPU: `recomputed` at D 256" in text
    for heading in ("Reliability attention", "Training step: packed", "End to end", "Checkpoint staging"):
        assert f"\n### {heading}" in text
    assert " skipped in " in text, "what pytest said"


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(tmp_path: Path) -> None:
    file = tmp_path / "gpu.md"
    command = ["bash", SCRIPT, str(file), "--parts", "tests", "transfers", "staging"]
    code, output = run(command, tmp_path / "log", PYTEST_ADDOPTS="--no-such-option")
    assert code == 1, output
    assert [line.split(" | ")[1] for line in file.read_text().splitlines() if line.startswith("| ")][1:4] == [
        "FAILED: exit status 4",
        NO_GPU,
        REHEARSED,
    ]
    assert "unrecognized arguments: --no-such-option" in file.read_text()


def test_a_machine_without_our_dependencies_gets_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "awtpn").mkdir()
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    copy = tmp_path / "tests" / "gpu" / "run.sh"
    copy.write_text(Path(SCRIPT).read_text())
    (tmp_path / "awtpn" / "__init__.py").write_text("raise ImportError('no torch here')\n")
    code, output = run(["bash", str(copy), str(tmp_path / "here.md")], tmp_path / "log")
    assert code == 1, output
    assert "no torch here" in output
    assert (tmp_path / "here.md").read_text() == "FAILED: nothing was measured, exit status 1\n"
