"""`awtpn predict` of recordings: for each a JSON line, a readable line on standard error, and a picture."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from awtpn.config.entry_point import data_output
from awtpn.inference.plot import draw
from awtpn.inference.prediction import Prediction
from awtpn.inference.predictor import Predictor
from awtpn.inference.recording import clip_of, load, text_clip
from awtpn.run.atomic_write import open_atomic
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import printable


def run_recordings(predictor: Predictor, options: argparse.Namespace) -> None:
    """Predict each recording, or the text that is given; exit with status 1 if one cannot be used."""
    if options.text is not None:
        predictor.check_takes_text()
    clips = [
        clip_of(Path(name), options.text, wants_text=predictor.takes_text) for name in options.input or ()
    ] or [text_clip(options.text)]
    steps = predictor.step_seconds
    task = predictor.model.task
    ranges = dict(zip(task.names, task.ranges or (), strict=False))
    names = picture_names([Path(clip.key) for clip in clips])
    failed = False
    with open_atomic(options.out) if options.out else contextlib.nullcontext(data_output()) as file:
        for clip, answer in predictor.iter_clips(clips):
            if isinstance(answer, str):
                print(printable(f"{clip.key}: not predicted: {answer}"), file=sys.stderr)
                failed = True
                continue
            path = Path(clip.key)
            # Transcripts are personal data: only words that were typed are repeated.
            words = clip.text.words if clip.text and options.text is not None else ()
            line = {"key": clip.key, **answer.as_json(), "step_seconds": steps}
            file.write(json_text(line | ({"words": list(words)} if words else {})) + "\n")
            file.flush()
            print(printable(summary_line(path.name, answer, steps, words)), file=sys.stderr)
            if options.png:
                picture = Path(options.png) / f"{names[path]}.png"
                draw(load(clip, steps), answer, picture, ranges)
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


def summary_line(
    name: str, answer: Prediction, step_seconds: Mapping[str, float], words: Sequence[str] = ()
) -> str:
    """What is predicted for a recording, and where the weights are largest (not of a baseline), in a line.

        clip.mp4: happy 83 %, sad 7 %, calm 5 %; heaviest: audio 0.8-0.9 s, text word 4 of 5
        clip.mp4: happy and sad (happy 83 %, sad 61 %, calm 5 %); heaviest: audio 0.8-0.9 s
        clip.mp4: valence 3.2 (90 % interval 2.1 to 4.3); heaviest: audio 0.8-0.9 s

    Args:
        name: of the recording.
        answer: for it.
        step_seconds: length of a step of audio and video.
        words: what is said, if the heaviest word is to be quoted.
    """
    heaviest = []
    for modality, weights in answer.weights.items():
        if not len(weights):
            continue
        place = int(np.argmax(weights))
        if modality in step_seconds:
            begin = place * step_seconds[modality]
            heaviest.append(f"{modality} {begin:.1f}-{begin + step_seconds[modality]:.1f} s")
        else:
            quoted = f" ({words[place]})" if words else ""
            heaviest.append(f"{modality} word {place + 1} of {len(weights)}{quoted}")
    told = f"{name}: {answer_in_words(answer)}"
    return f"{told}; heaviest: {', '.join(heaviest)}" if heaviest else told


def answer_in_words(answer: Prediction) -> str:
    """The answer, with its probabilities or its intervals."""
    if answer.values is not None:
        spans = answer.intervals or {}
        told = []
        for name, value in answer.values.items():
            span = spans.get(name)
            within = "" if span is None else f" (90 % interval {span[0]:.4g} to {span[1]:.4g})"
            told.append(f"{name} {value:.4g}{within}")
        return ", ".join(told)
    ranked = sorted(answer.probabilities.items(), key=lambda item: -item[1])[:3]
    shares = ", ".join(f"{label} {100 * share:.0f} %" for label, share in ranked)
    return shares if answer.labels is None else f"{answer.described()} ({shares})"
