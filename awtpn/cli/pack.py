"""`awtpn pack`: features that exist already, in one of many formats -> shards."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from awtpn.cli.dataset_summary import how_to_train, print_quantized, print_splits, print_targets
from awtpn.cli.extract import (
    DEFAULT_ENCODERS,
    add_compute_options,
    add_encoder_options,
    add_store_text,
    encoder_options,
    is_given,
    open_one_encoder,
    run_as_pack,
)
from awtpn.cli.signature_options import (
    Options,
    add_options,
    arguments,
    flags_last,
    given_options,
    options_of,
    two_columns,
)
from awtpn.config.option_types import add_store_options
from shards.format.precision_names import long_name
from shards.format.schema import DTYPES, INT8
from shards.registry import Entry
from shards.sources import PACKED, find_sources
from shards.storage.local_path import is_remote, local_or_url

if TYPE_CHECKING:
    from shards.format.schema import BadSample, Sample
    from shards.sources.base import Source

HELP = """Pack features into WebDataset tar shards with an index and a manifest.

formats of features:
{features}

--text_encoder takes an encoder of text, such as chargrams; `awtpn extract --help` lists them.

formats of recordings (the default encoders of `awtpn extract` compute their features first; that command has
more options, and reads clips of your own):
{recordings}

`python -c "help('shards.sources.npz')"`, and so on, shows all that a format may hold.
"""
EXAMPLES = """examples:
  awtpn pack features.npz data/mine --format npz
  awtpn pack clips.csv s3://corpus/mine --format table --labels neutral,happy,sad --on_bad skip
  awtpn pack clips.csv data/vad --format table --target regression --target_columns valence=1:5,arousal=1:5
  awtpn pack clips.csv data/emotions --format table --target multilabel --target_columns happy,sad,angry
  awtpn pack CMU_MOSEI data/mosei --format mosei --audio CMU_MOSEI_COVAREP.csd \\
      --video CMU_MOSEI_VisualFacet42.csd --folds cmu_mosei_std_folds.py
  awtpn pack unaligned_50.pkl data/mosi --format mmsa --text_encoder chargrams
"""


def add_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="features -> shards",
        description=describe(),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=local_or_url, help="what to read; see the formats")
    parser.add_argument("out", metavar="OUT", help="folder to write, any fsspec URL")
    parser.add_argument(
        "--format",
        required=True,
        choices=[*find_sources("Source"), *_corpora()],
        metavar="FORMAT",
        help="format of SOURCE; one of those above",
    )
    parser.add_argument(
        "--dtype",
        type=long_name,
        choices=DTYPES,
        default="float16",
        help="stored precision (default: float16); int8 halves it: SOURCE is then read twice, and a feature "
        "that it would ruin is refused (see launch/README.md)",
    )
    parser.add_argument(
        "--shard_mb",
        type=mebibytes,
        default=256,
        metavar="MIB",
        help="close a shard at this size (default: 256)",
    )
    parser.add_argument(
        "--on_bad",
        choices=["refuse", "skip"],
        help="bad utterances: stop, or leave them out and list them in skipped.jsonl (default: refuse; of "
        "recordings: skip)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there already")
    add_store_options(parser)
    takes = source_options()
    add_options(parser.add_argument_group("options of single formats"), takes, find_sources("Source"))
    text = parser.add_argument_group("features of text that an encoder makes of transcripts")
    add_encoder_options(text, "text")
    add_store_text(text)
    add_compute_options(text)
    parser.arranged = partial(flags_last, options=takes, owner_option="--format")
    parser.set_defaults(command=run_pack)


def mebibytes(text: str) -> float:
    """An option's value that is a size in MiB."""
    with contextlib.suppress(ValueError):
        if 0 < (size := float(text)) < math.inf:
            return size
    raise argparse.ArgumentTypeError(f"{text!r} is no size in MiB; write e.g. 256")


def source_options() -> Options:
    """The options of all formats of features; formats of recordings take those that they have of these."""
    takes = options_of(find_sources("Source"))
    of_recordings = options_of(_corpora())
    return {name: {**owners, **of_recordings.get(name, {})} for name, owners in takes.items()}


def run_pack(options: argparse.Namespace) -> None:
    takes = source_options()
    given = given_options(options, takes)
    if options.format in _corpora():
        # Here --audio and --video name encoders, which the extraction takes; of text it makes no features.
        encoded = [name for name, encoder in DEFAULT_ENCODERS.items() if encoder != "none"]
        given = {name: value for name, value in given.items() if name not in encoded}
        vars(options).update(arguments(options.format, takes, given))
        run_as_pack(options)
        return
    from shards.packing.pack import pack
    from shards.storage.credentials import redact_command

    entry = find_sources("Source")[options.format]
    how = arguments(options.format, takes, given)
    if "storage_options" in entry.parameters and is_remote(options.source):
        how["storage_options"] = options.storage_options

    def read() -> Source:
        return encode_transcripts(entry.load()(options.source, **how), options)

    source = read()
    manifest = pack(
        SamplesAgain(source.samples, read) if options.dtype == INT8 else source.samples,
        options.out,
        classes=source.classes,
        provenance=source.provenance | {"command": redact_command([*options.program.typed, *options.words])},
        dtype=options.dtype,
        shard_bytes=max(1, int(options.shard_mb * 2**20)),
        on_bad=options.on_bad or "refuse",
        storage_options=options.storage_options,
        overwrite=options.overwrite,
        total=source.total,
        target=source.target,
        targets=source.targets,
    )
    print_splits(manifest)
    print_targets(manifest)
    print_quantized(manifest)
    if manifest.skipped:
        print(f"{manifest.skipped} bad utterances left out; see skipped.jsonl in {options.out}")
    print(f"packed; train with: {how_to_train(manifest, options.out)}")


class SamplesAgain:
    """The samples of a source, which can be iterated again: it is then read anew."""

    def __init__(self, samples: Iterator[Sample | BadSample], read: Callable[[], Source]) -> None:
        self._first: Iterator[Sample | BadSample] | None = samples
        self._read = read

    def __iter__(self) -> Iterator[Sample | BadSample]:
        first, self._first = self._first, None
        return iter(self._read().samples) if first is None else first


def encode_transcripts(source: Source, options: argparse.Namespace) -> Source:
    """The source with features of text, if it has transcripts.

    Raises:
        ValueError: it has none, but options of text are given; or no such encoder.
    """
    if source.text_encoder is None:
        words = ["store_text", *encoder_options("text")]
        if given := [word for word in words if is_given(getattr(options, word))]:
            raise ValueError(
                f"--{given[0]}: no features of text are made here; make them with --text_encoder ENCODER (of "
                "--format mmsa or mosei), or leave it out"
            )
        return source
    import torch

    from awtpn.model.device import resolve_device
    from shards.extraction.text_features import with_text

    device = str(resolve_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    encoder = open_one_encoder("text", source.text_encoder, options, device)
    if encoder is None:
        raise ValueError("--text_encoder none encodes nothing; leave the text out")
    return with_text(source, encoder, store_text=options.store_text)


def describe() -> str:
    """The description of the command, with all formats."""
    texts = [
        {name: f"{e.summary} SOURCE: {e.parameters['source'].help}." for name, e in entries.items()}
        for entries in (find_sources("Source"), _corpora())
    ]
    return HELP.format(features=two_columns(texts[0]), recordings=two_columns(texts[1]))


def _corpora() -> dict[str, Entry]:
    """The corpora of recordings: sources which `recognize` their folder, and which are not packed yet."""
    found = find_sources("ClipSource")
    return {name: e for name, e in found.items() if "recognize" in e.functions and name != PACKED}
