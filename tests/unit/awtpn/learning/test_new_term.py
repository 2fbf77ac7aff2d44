"""A seventh loss term, added by the two edits that CONTRIBUTING names, appears wherever terms do."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from report_support import make_run
from support import REPO, arguments, run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from awtpn.learning.settings import TERMS, LossConfig

# The first edit: a line of TERMS and the weight's field.
TERM = '    "sharp": "lambda_sharp",\n}\n'
FIELD = '''    lambda_sharp: float = 0.25
    """Weight of the squared logits."""
    align_form:'''
# The second edit: the term's function.
FUNCTION = '''@loss_term
def sharp(inputs: LossInputs) -> Tensor:
    """Mean over utterances of the squared logits."""
    return inputs.output.logits.square().sum() / inputs.normalizers.utterances


def _masked_sum('''

# Trains, then reports and lists the ablations in the same process, since importing torch again takes seconds.
PROGRAM = """
import json, runpy, sys
from pathlib import Path
folder = Path(__file__).parent
runpy.run_path(str(folder / "launch" / "train.py"), run_name="__main__")
from awtpn.experiments.ablation import read_variants
from awtpn.report.write import write_report
for name in ("run", "earlier"):
    write_report([folder / name], folder / f"{name}.html", folder / f"{name}.md")
(folder / "variants.json").write_text(json.dumps(read_variants()))
"""


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{file}: {old!r}"
    file.write_text(text.replace(old, new))


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(demo_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a seventh term, which has trained the demo for six steps in `run`."""
    folder = tmp_path_factory.mktemp("seventh-term")
    for name in ("awtpn", "shards", "launch", "configs"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings, losses = (folder / "awtpn" / "learning" / name for name in ("settings.py", "losses.py"))
    edit(settings, '    "mse": "eta_mse",\n}\n', '    "mse": "eta_mse",\n' + TERM)
    edit(settings, "    align_form:", FIELD)
    edit(losses, "def _masked_sum(", FUNCTION)
    make_run(folder / "earlier")  # by this code, which knows six terms
    given = {
        "data.cache_dir": demo_cache,
        "run.dir": folder / "run",
        "train.max_steps": 6,
        "train.pictures": "never",
    }
    # Python imports from the folder of the program that it runs, so from the copy.
    (folder / "program.py").write_text(PROGRAM)
    code, output = run([sys.executable, str(folder / "program.py"), *arguments(given)], folder / "log")
    assert code == 0, output
    return folder


def test_a_new_term_is_trained_and_stands_in_every_line(folder: Path) -> None:
    lines = lines_of(folder / "run")
    assert len(lines) == 6
    for line in lines:
        weights = {term: getattr(LossConfig(), key) for term, key in TERMS.items()}
        total = sum(weight * line[term] for term, weight in weights.items()) + 0.25 * line["sharp"]
        assert line["sharp"] > 0
        assert math.isclose(line["loss"], total, rel_tol=1e-5)


def test_a_new_term_is_in_tensorboard(folder: Path) -> None:
    events = EventAccumulator(str(folder / "run" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    shown = [event.value for event in events.Scalars("loss/sharp")]
    assert shown == pytest.approx([line["sharp"] for line in lines_of(folder / "run")])


def test_a_new_term_is_in_the_reports(folder: Path) -> None:
    mean = sum(line["sharp"] for line in lines_of(folder / "run")) / 6
    assert f"| sharp | 0.25 | {mean:.4g} | {mean:.4g} |" in (folder / "run.md").read_text()
    assert 'aria-label="sharp over steps"' in (folder / "run.html").read_text()


def test_a_run_of_six_terms_is_still_reported(folder: Path) -> None:
    page, text = (folder / "earlier.html").read_text(), (folder / "earlier.md").read_text()
    assert 'aria-label="mse over steps"' in page
    assert "| mse | 0.5 |" in text
    assert "sharp" not in page + text


def test_a_new_term_is_ablated(folder: Path) -> None:
    variants = json.loads((folder / "variants.json").read_text())
    assert variants["sharp off"] == {"loss.lambda_sharp": 0.0}
