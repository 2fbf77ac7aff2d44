"""Values of options that several commands take, for argparse's `type=`."""

from __future__ import annotations

import argparse
import contextlib
import math
from pathlib import Path
from typing import Any

from awtpn.config.settings import DEMOS
from awtpn.config.suggestions import one_of
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import find_not_finite
from shards.storage.local_path import is_remote, local_path

# For the help of an option that `takes_dataset`.
OR_DEMO = f"or {one_of(DEMOS)}, made at the first use (./demo is a folder of that name)"
BASE_OPTIONS = ("audio", "video")  # modalities that a model may have an encoder of


def path_argument(text: str) -> Path:
    """A path on this machine: see `shards.storage.local_path`."""
    try:
        return local_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_argument(text: str) -> Path | str:
    """A run, checkpoint or model on this machine, as a path; or the URL of a run, as text.

    A command that takes it says so by `takes_run`.
    """
    return text if is_remote(text) else path_argument(text)


def finite_number(text: str) -> float:
    """A number that is neither NaN nor infinite."""
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no finite number")


def comma_separated(text: str) -> list[str]:
    """A list, written with commas."""
    return text.split(",")


def json_object(text: str) -> dict[str, Any]:
    """A JSON object without NaN and infinity."""
    with contextlib.suppress(ValueError):
        if isinstance(value := parse_json(text, "the option"), dict) and find_not_finite(value) is None:
            return value
    raise argparse.ArgumentTypeError(f'{text!r} is no JSON object; write e.g. \'{{"name": "value"}}\'')


def storage_options(text: str) -> dict[str, Any]:
    """`json_object`, whose error does not show the text: it may hold credentials."""
    try:
        return json_object(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            'what is given is no JSON object; write e.g. \'{"name": "value"}\''
        ) from None


def takes_dataset(parser: argparse.ArgumentParser, option: str) -> None:
    """Let an option, whose value is a dataset or a list of them, name the built-in demos."""
    parser.set_defaults(dataset_option=option)


def takes_run(parser: argparse.ArgumentParser, option: str, needs: str) -> None:
    """Let an option, whose value is a run or a list of them, be the URL of one: the command gets its copy.

    Args:
        parser: of the command.
        option: name of the option.
        needs: what the command reads of a run besides its records: see `awtpn.run.remote.commands`.
    """
    parser.set_defaults(run_option=option, run_needs=needs)


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """Add `--storage_options`, which every command takes that reads or writes datasets or runs."""
    parser.add_argument(
        "--storage_options",
        type=storage_options,
        metavar="JSON",
        help='options for fsspec, e.g. \'{"endpoint_url": "https://..."}\'',
    )


def add_base_options(parser: argparse.ArgumentParser) -> None:
    """Add `--audio` and `--video`, of commands that open a model with encoders."""
    for modality in BASE_OPTIONS:
        parser.add_argument(
            f"--{modality}",
            metavar="ENCODER",
            help=f"of a model with an encoder of {modality}: the folder or hub id of what that was trained "
            "from, if it moved since then",
        )


def base_models(options: argparse.Namespace) -> dict[str, str]:
    """By modality what the options of `add_base_options` say."""
    given = {modality: getattr(options, modality, None) for modality in BASE_OPTIONS}
    return {modality: place for modality, place in given.items() if place is not None}
