"""What a run on a built-in demo corpus ends with: its report, what the weights found, and what to do next.

A newcomer's first command is such a run. The informative time steps of a demo are known, so the weights of
an utterance can be shown beside them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

import numpy as np
import torch
from numpy.typing import NDArray

from awtpn.model.base import EmotionModel
from awtpn.model.models import load_model
from awtpn.tracking.snapshot import example
from shards import FeatureStream

# From no weight to the utterance's largest one; the second where a terminal has no Unicode.
BARS, PLAIN_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
MARK = "^"  # below an informative time step
# The configuration of a demo that has another name than its data; `awtpn train` alone is that of `demo`.
CONFIG_OF = {"demo-recordings": "finetune-demo"}


def show_tour(run_dir: Path, data: str, test: FeatureStream | None) -> None:
    """Write the report of a finished run, and print where it is, an utterance and commands.

    Args:
        run_dir: of the run.
        data: name of the demo, as `data.train` has it.
        test: its test split; None if the run has none.
    """
    from awtpn.report.write import write_report  # only here: few runs are of a demo

    lines = []
    try:
        [page] = write_report([run_dir], run_dir / "report.html", None)
        lines += [f"report in {page}"]
        if test is not None:
            lines += ["", *utterance_lines(load_model(run_dir), test, bars_for(sys.stdout.encoding))]
    except (OSError, ValueError) as error:  # the run itself is complete
        lines += [f"no report: {error}"]
    print("\n".join([*lines, "", "next:", *command_lines(run_dir, data)]))


@torch.no_grad()
def utterance_lines(model: EmotionModel, stream: FeatureStream, bars: str) -> list[str]:
    """The weights of an utterance's time steps: per modality a line of bars, above marks of the informative.

    It is the first utterance of the first batch that the model recognizes and that lacks no modality, or else
    the first. No lines for a model without reliability weights.

    Args:
        model: in eval mode, on the CPU.
        stream: utterances of a demo.
        bars: characters from no weight to the largest one.
    """
    batch = next(iter(stream.epoch(0)))
    output = model(batch.features)
    found = [example(batch, output, row, model.task) for row in range(len(batch))]
    found = [each for each in found if each.weights]
    if not found:
        return []
    good = [each for each in found if each.caption.right and all(map(len, each.weights.values()))]
    shown = (good or found)[0]
    meta = next(meta for key, meta in stream.metadata() if key == shown.key)
    informative = {name: meta[f"informative_{name}"] for name in shown.weights}
    said = f"{shown.caption.truth}; the model says: {shown.caption.answer}"
    return [
        f"what the weights found in {shown.key} ({said}):",
        f"a bar for each time step, and {MARK} below those that carry the truth",
        *weight_lines(shown.weights, informative, bars),
    ]


def weight_lines(
    weights: Mapping[str, NDArray[np.float32]], informative: Mapping[str, Sequence[int]], bars: str
) -> list[str]:
    """For each modality a line of bars, and below it marks at the informative time steps."""
    margin = max(map(len, weights)) + 2
    lines = []
    for name, of_steps in weights.items():
        shares = of_steps / max(float(of_steps.max(initial=0)), 1e-12)
        levels = np.ceil(shares * (len(bars) - 1) - 1e-6).astype(int).tolist()
        marks = "".join(MARK if step in informative[name] else " " for step in range(len(of_steps)))
        lines += [f"  {name:<{margin}}{''.join(bars[level] for level in levels)}", f"  {'':<{margin}}{marks}"]
    return [line.rstrip() for line in lines]


def command_lines(run_dir: Path, data: str) -> list[str]:
    """Commands that are worth a newcomer's time, and what each is for."""
    again = "awtpn train" if data == "demo" else f"awtpn train --config {CONFIG_OF.get(data, data)}"
    # A model of made-up features takes no clips; one with encoders does.
    about = "a web page: drop or record a clip"
    served = {f"awtpn serve {quote(str(run_dir))}": about} if data == "demo-recordings" else {}
    commands = {
        f"{again} --model.awm uniform": "the same with plain averages over time in place of the weights",
        f"tensorboard --logdir {quote(str(run_dir.parent))}": "losses, weights and prototypes over time",
        f"awtpn predict {quote(str(run_dir))} {data} --out answers.jsonl": "a line for each test utterance",
        **served,
        "awtpn extract recordings data/mine": "features of your own recordings; awtpn pack takes features",
    }
    margin = max(map(len, commands)) + 2
    return [f"  {command:<{margin}}{what}" for command, what in commands.items()]


def bars_for(encoding: str | None) -> str:
    """The characters for bars that a terminal of this encoding can show."""
    try:
        BARS.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return PLAIN_BARS
    return BARS
