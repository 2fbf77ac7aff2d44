"""`awtpn predict`: a JSON line for each utterance or recording; `awtpn serve`: a web page to try a model."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from awtpn.config.entry_point import data_output
from awtpn.config.option_types import (
    OR_DEMO,
    add_store_options,
    finite_number,
    path_argument,
    run_argument,
    takes_dataset,
    takes_run,
)
from awtpn.model.sharing.hub import refuse_missing
from awtpn.run.atomic_write import open_atomic
from shards.format.split_names import split_from_url_or_option
from shards.safe_io.json_text import json_text
from shards.sources.reading.recordings_folder import PICTURE, SOUND, TRANSCRIPT
from shards.storage.local_path import URL, local_or_url

HELP = """Write a JSON line for each utterance: the prediction, and the reliability weight of each time step
of each modality: audio segments, video frames, words. The prediction depends on the model's task:

  classification  label, and probabilities by class
  multilabel      labels (those with a probability above 0.5), and probabilities by label
  regression      values by dimension, and intervals: the 90 % prediction interval of each value, or
                  null where the model has no results of validation

A baseline (model.name) has no reliability weights: its `weights` are {}.

INPUT is a packed dataset, or recordings. Features of recordings are made with the encoders and settings that
made the training data, so the model must have been trained on the output of `awtpn extract`. A model that has
encoders itself takes recordings, or a dataset of them.

A model of text takes what is said from --text, or from clip.txt beside clip.mp4. A .txt file as INPUT, or
--text without INPUT, is text alone. A recording is predicted without what it lacks (text, sound, picture),
and a line on standard error says so. Transcripts are personal data: the JSON line (`words`) and standard
error repeat the words of --text only, and no words of files. A picture (--png) shows the words in any case.

examples:
  awtpn predict runs/mine clip.mp4 --png pictures
  awtpn predict runs/mine clip.mp4 --text "What a day!"
  awtpn predict runs/mine --text "What a day!"
  awtpn predict runs/mine demo --out answers.jsonl
  awtpn predict my-model s3://corpus/meld --split val --out answers.jsonl
"""
SERVE_HELP = """Serve a web page on this machine, to try a model in a browser: drop or record a clip, see
the answer, and the reliability weights over the sound, the frames and the words.

The page loads nothing from elsewhere and works without network. A clip is deleted as soon as it is
answered; nothing of it is logged. The model must have been trained on the output of `awtpn extract`.
Other web pages cannot use it; other users of this machine can.

From another machine, forward the port: the network is kept out, and the browser allows the camera:
ssh -L 8765:localhost:8765 MACHINE

examples:
  awtpn serve runs/mine
  awtpn serve USER/MODEL --port 9000 --max_seconds 30
"""
# Options that say where an encoder is, and its modality.
ENCODER_OPTIONS = {"audio": "audio", "video": "video", "text_encoder": "text"}


def add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="classes, labels or values, and reliability weights, a JSON line each",
        description=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=run_argument,
        help="run, checkpoint or export folder, the URL of a run, or USER/MODEL on the Hugging Face Hub",
    )
    takes_run(parser, "model", "best")
    # With nargs="*", argparse would take no INPUT that follows an option.
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=local_or_url,
        nargs="+",
        help=f"a packed dataset, any fsspec URL (URL#split names a split), {OR_DEMO}; or recordings, sound "
        "or video; or .txt files",
    ).required = False
    takes_dataset(parser, "input")
    parser.add_argument(
        "--text",
        metavar="WORDS",
        help="what is said in the recording, or without INPUT text alone (default: the .txt file beside it)",
    )
    parser.add_argument(
        "--png",
        metavar="DIR",
        type=path_argument,
        help="recordings: write a picture of each prediction and its weights to this folder",
    )
    add_encoder_options(parser, "recordings: ")
    parser.add_argument("--split", metavar="NAME", help="split of the dataset (default: test)")
    parser.add_argument(
        "--out", type=path_argument, metavar="FILE", help="file to write (default: standard output)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: cpu)")
    add_store_options(parser)
    parser.set_defaults(command=run_predict)


def add_encoder_options(parser: argparse.ArgumentParser, of: str = "") -> None:
    """Add the options that say where encoders are; `of` begins their help."""
    for option, modality in ENCODER_OPTIONS.items():
        parser.add_argument(
            f"--{option}",
            metavar="ENCODER",
            help=f"{of}the {modality} encoder's folder or hub id, if it moved since extraction or training",
        )


def told_encoders(options: argparse.Namespace) -> dict[str, str]:
    """By modality where encoders are, as the options say."""
    told = {modality: getattr(options, option) for option, modality in ENCODER_OPTIONS.items()}
    return {modality: place for modality, place in told.items() if place is not None}


def add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve",
        help="a web page on this machine, to try a model in the browser",
        description=SERVE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=run_argument,
        help="run, checkpoint or export folder, the URL of a run, or USER/MODEL on the Hugging Face Hub",
    )
    takes_run(parser, "model", "best")
    parser.add_argument(
        "--port", type=int, default=8765, metavar="N", help="0 is any free port (default: 8765)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; with any but the default others can use the page (default: 127.0.0.1)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: cpu)")
    add_encoder_options(parser)
    parser.add_argument(
        "--max_megabytes", type=finite_number, default=200.0, metavar="MB", help="of a clip (default: 200)"
    )
    parser.add_argument(
        "--max_seconds", type=finite_number, default=120.0, metavar="S", help="of a clip (default: 120)"
    )
    add_store_options(parser)
    parser.set_defaults(command=run_serve)


def run_serve(options: argparse.Namespace) -> None:
    for name in ("max_megabytes", "max_seconds"):
        if (value := getattr(options, name)) <= 0:
            raise ValueError(f"--{name} {value:g}: give a number above 0")
    if not 0 <= options.port < 1 << 16:
        raise ValueError(f"--port {options.port}: give a number from 0 to 65535")
    refuse_missing(options.model)
    from awtpn.inference.page.guards import is_loopback
    from awtpn.inference.page.server import run_page
    from awtpn.inference.predictor import Predictor
    from awtpn.model.sharing.model_card import MADE_UP

    predictor = Predictor.from_pretrained(options.model, options.device, told_encoders(options))
    try:
        predictor.encoders()
    except ValueError as error:
        made_up = (predictor.model.provenance or {}).get("format") in MADE_UP
        why = "its features are made up, not made of recordings: train on your own" if made_up else error
        raise ValueError(f"{options.model} cannot be tried with recordings: {why}") from None
    if not is_loopback(options.host):
        print(
            f"warning: --host {options.host}: anybody on the network can open this page and send clips",
            file=sys.stderr,
        )
    is_predicting = run_page(
        predictor,
        str(options.model),
        options.host,
        options.port,
        round(options.max_megabytes * 1e6),
        options.max_seconds,
        lambda address: print(f"try {options.model} at {address} (Ctrl-C ends it)", flush=True),
    )
    if is_predicting:
        # Python would wait for the thread, for as long as an encoder needs. Nothing of it is needed any more.
        sys.stdout.flush()
        os._exit(0)


def run_predict(options: argparse.Namespace) -> None:
    of_recordings = are_recordings(options.input, options.text)
    for name in ("png", "text", "text_encoder"):
        if getattr(options, name) is not None and not of_recordings:
            raise ValueError(f"--{name} is for recordings, and {options.input[0]} is a dataset: leave it out")
    split = None if of_recordings else split_from_url_or_option(options.input[0], options.split)
    refuse_missing_inputs(options.input or [])
    refuse_missing(options.model)
    from awtpn.inference.predictor import Predictor

    predictor = Predictor.from_pretrained(options.model, options.device, told_encoders(options))
    for name, modality in ENCODER_OPTIONS.items():
        if getattr(options, name) is not None and not (of_recordings or modality in predictor.model.encoders):
            raise ValueError(f"--{name} is for recordings, and {options.input[0]} is a dataset: leave it out")
    if (network := predictor.model.config.name) != "awtpn":
        print(f"{network} is a baseline without reliability weights: `weights` stays empty", file=sys.stderr)
    if of_recordings:
        from awtpn.cli.predict_recordings import run_recordings

        run_recordings(predictor, options)
        return
    from awtpn.run.data import check_feature_space, check_features, open_stream

    # By the dataset's own target, which every utterance has. What the model predicts may be missing in it.
    stream = open_stream(
        encoded=list(predictor.model.encoders),
        url=options.input[0],
        split=split or "test",
        shuffle=False,
        modalities=list(predictor.model.feature_dims),
        storage_options=options.storage_options,
    )
    same_kind = predictor.model.task.is_classes and stream.target.is_classes
    (check_feature_space if same_kind else check_features)(predictor.model, stream)
    with open_atomic(options.out) if options.out else contextlib.nullcontext(data_output()) as file:
        for key, prediction in predictor.predict_stream(stream):
            file.write(json_text({"key": key, **prediction.as_json()}) + "\n")


def are_recordings(inputs: list[str] | None, text: str | None = None) -> bool:
    """Whether INPUT names recordings, and not a packed dataset; or there is text alone.

    Raises:
        ValueError: recordings and a dataset, several datasets, nothing, or a text for several recordings.
    """
    if not inputs:
        if text is None:
            raise ValueError("there is nothing to predict: give INPUT, or what is said with --text")
        return True
    found = [_is_recording(Path(name)) for name in inputs]
    if all(found):
        if text is not None and len(inputs) > 1:
            raise ValueError(
                f"--text is what is said in one recording, and here are {len(inputs)}: write the text of "
                "each into a .txt file of the same name beside it"
            )
        return True
    if len(inputs) > 1:
        other = inputs[found.index(False)]
        raise ValueError(f"{other} is not a file: give only recordings, or a single dataset")
    return False


def refuse_missing_inputs(inputs: list[str]) -> None:
    """Raise ValueError if none of the inputs exists; some of many recordings may be missing."""
    names = [name.partition("#")[0] for name in inputs]  # DATASET#split
    paths = [Path(name) for name in (*inputs, *names) if not URL.match(name)]
    if inputs and len(paths) == 2 * len(inputs) and not any(path.exists() for path in paths):
        listed = ", ".join(inputs[:3]) + (", ..." if len(inputs) > 3 else "")
        raise ValueError(f"{listed} does not exist: INPUT is a packed dataset, or recordings")


def _is_recording(path: Path) -> bool:
    """A file with any suffix but .json, which may be a manifest; or the name of a missing recording."""
    if path.is_file():
        return path.suffix.lower() != ".json"
    return not path.is_dir() and path.suffix.lower() in {*SOUND, *PICTURE, TRANSCRIPT}
