"""`awtpn predict`: a JSON line for each utterance of a dataset, or for each recording."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from awtpn.config.entry_point import data_output
from awtpn.config.option_types import add_store_options, path_argument
from awtpn.model.hub import refuse_missing
from awtpn.run.atomic_write import open_atomic
from shards.format.split_names import split_from_url_or_option
from shards.safe_io.json_text import json_text
from shards.sources.recordings_folder import PICTURE, SOUND
from shards.storage.local_path import URL, local_or_url

HELP = """Write a JSON line for each utterance: its label, the classes' probabilities, and the reliability
weight of each time step of audio and video.

INPUT is a packed dataset, or recordings. Features of recordings are made with the encoders and settings that
made the training data, so the model must have been trained on the output of `awtpn extract`.

examples:
  awtpn predict runs/mine clip.mp4 --png pictures
  awtpn predict my-model s3://corpus/meld --split val --out answers.jsonl
"""


def add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="labels, probabilities and reliability weights, a JSON line each",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=path_argument,
        help="run, checkpoint or export folder, or USER/MODEL on the Hugging Face Hub",
    )
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=local_or_url,
        nargs="+",
        help="a packed dataset, any fsspec URL (URL#split names a split); or recordings, sound or video",
    )
    parser.add_argument(
        "--png",
        metavar="DIR",
        type=path_argument,
        help="recordings: write a picture of each prediction and its weights to this folder",
    )
    for modality in ("audio", "video"):
        parser.add_argument(
            f"--{modality}",
            metavar="ENCODER",
            help=f"recordings: the {modality} encoder's folder or hub id, if it moved since extraction",
        )
    parser.add_argument("--split", metavar="NAME", help="split of the dataset (default: test)")
    parser.add_argument(
        "--out", type=path_argument, metavar="FILE", help="file to write (default: standard output)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: cpu)")
    add_store_options(parser)
    parser.set_defaults(command=run_predict)


def run_predict(options: argparse.Namespace) -> None:
    of_recordings = are_recordings(options.input)
    for name in ("png", "audio", "video"):
        if getattr(options, name) and not of_recordings:
            raise ValueError(f"--{name} is for recordings, and {options.input[0]} is a dataset: leave it out")
    split = None if of_recordings else split_from_url_or_option(options.input[0], options.split)
    refuse_missing_inputs(options.input)
    refuse_missing(options.model)
    from awtpn.inference.predictor import Predictor

    predictor = Predictor.from_pretrained(options.model, options.device)
    if of_recordings:
        from awtpn.cli.predict_recordings import run_recordings

        run_recordings(predictor, options)
        return
    from awtpn.run.data import check_feature_space
    from shards import FeatureStream

    stream = FeatureStream(
        options.input[0],
        split=split or "test",
        shuffle=False,
        modalities=list(predictor.model.feature_dims),
        storage_options=options.storage_options,
    )
    check_feature_space(predictor.model, stream)
    with open_atomic(options.out) if options.out else contextlib.nullcontext(data_output()) as file:
        for key, prediction in predictor.predict_stream(stream):
            file.write(json_text({"key": key, **prediction.as_json()}) + "\n")


def are_recordings(inputs: list[str]) -> bool:
    """Whether INPUT names recordings, and not a packed dataset.

    Raises:
        ValueError: recordings and a dataset, or several datasets.
    """
    found = [_is_recording(Path(name)) for name in inputs]
    if all(found):
        return True
    if len(inputs) > 1:
        other = inputs[found.index(False)]
        raise ValueError(f"{other} is not a file: give only recordings, or a single dataset")
    return False


def refuse_missing_inputs(inputs: list[str]) -> None:
    """Raise ValueError if none of the inputs exists; some of many recordings may be missing."""
    names = [name.partition("#")[0] for name in inputs]  # DATASET#split
    paths = [Path(name) for name in (*inputs, *names) if not URL.match(name)]
    if len(paths) == 2 * len(inputs) and not any(path.exists() for path in paths):
        listed = ", ".join(inputs[:3]) + (", ..." if len(inputs) > 3 else "")
        raise ValueError(f"{listed} does not exist: INPUT is a packed dataset, or recordings")


def _is_recording(path: Path) -> bool:
    """A file with any suffix but .json, which may be a manifest; or the name of a missing recording."""
    if path.is_file():
        return path.suffix.lower() != ".json"
    return not path.is_dir() and path.suffix.lower() in SOUND | PICTURE
