"""`awtpn predict` of recordings: for each a JSON line, a readable line on standard error, and a picture."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from awtpn.config.entry_point import data_output
from awtpn.inference.plot import draw, load
from awtpn.inference.predictor import Prediction, Predictor
from awtpn.run.atomic_write import open_atomic
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import printable


def run_recordings(predictor: Predictor, options: argparse.Namespace) -> None:
    """Predict each recording; exit with status 1 if one cannot be used."""
    encoders = predictor.encoders(audio=options.audio, video=options.video)
    steps = {modality: float(encoder.step_seconds) for modality, encoder in encoders.items()}
    names = picture_names([Path(name) for name in options.input])
    failed = False
    with open_atomic(options.out) if options.out else contextlib.nullcontext(data_output()) as file:
        for path, answer in predictor.iter_recordings(options.input):
            if isinstance(answer, str):
                print(printable(f"{path}: not predicted: {answer}"), file=sys.stderr)
                failed = True
                continue
            file.write(json_text({"key": str(path), **answer.as_json(), "step_seconds": steps}) + "\n")
            file.flush()
            print(printable(summary_line(path, answer, steps)), file=sys.stderr)
            if options.png:
                picture = Path(options.png) / f"{names[path]}.png"
                draw(load(path, steps), answer, picture)
                print(printable(f"  drawn: {picture}"), file=sys.stderr)
    if failed:
        sys.exit(1)


def picture_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The name of each recording's picture: its file name, with its folders where files share a name."""
    files = Counter(path.name for path in set(paths))
    return {
        path: path.name if files[path.name] == 1 else "_".join(path.relative_to(path.anchor).parts)
        for path in paths
    }


def summary_line(path: Path, answer: Prediction, step_seconds: dict[str, float]) -> str:
    """ "clip.mp4: happy 83 %, sad 7 %, calm 5 %; heaviest: audio 0.8-0.9 s, video 1.2-1.3 s"."""
    ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ranked)
    heaviest = []
    for modality, weights in answer.weights.items():
        if len(weights):
            begin = int(np.argmax(weights)) * step_seconds[modality]
            heaviest.append(f"{modality} {begin:.1f}-{begin + step_seconds[modality]:.1f} s")
    return f"{path.name}: {shares}; heaviest: {', '.join(heaviest)}"
