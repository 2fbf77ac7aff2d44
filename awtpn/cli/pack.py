"""`awtpn pack`: features that others made, of many forms, into shards."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from awtpn.cli.dataset_summary import how_to_train, print_splits
from awtpn.cli.extract import run_as_pack
from awtpn.config.option_types import add_store_options, comma_separated
from shards.sources import iemocap, meld, mmsa, mosei, npz, table
from shards.sources.base import Source
from shards.storage.credentials import redact_command
from shards.storage.local_path import local_or_url


def read_reference(source: str, labels: list[str] | None = None) -> Source:
    """`shards.sources.reference.read`, which needs torch."""
    from shards.sources import reference

    return reference.read(source, labels)


SOURCES: dict[str, Callable[..., Source]] = {
    "reference": read_reference,
    "table": table.read,
    "npz": npz.read,
    "mosei": mosei.read,
    "mmsa": mmsa.read,
}
# Recordings: their features are made on the way.
RECORDED = {"iemocap": iemocap.read, "meld": meld.read}
# Options that a source may have; those it has are the parameters of its `read`.
OPTIONS = ("labels", "label_set", "audio", "video", "folds", "no_emotion", "text")

HELP = """Pack features into WebDataset tar shards with an index and a manifest.

formats:
  reference  a folder with the published {train,val,test}.pt: audio_feats, video_feats, labels
  table      a CSV or JSONL file: key, split, label, audio, video (paths of .npy files, relative to the
             table; an empty one is a missing modality); further columns are kept as metadata
  npz        one file of packed arrays: X [sum T, D] with X_offsets [U+1], or X [U, T, D], per modality,
             padded with X_lengths [U]; label, label_names, ids, split; further arrays of U entries are kept
             as metadata
  mosei      the folder of CMU-MOSEI's computational sequences (.csd); --audio, --video and --folds name files
  mmsa       a feature file of MMSA (.pkl): CMU-MOSI, CMU-MOSEI, CH-SIMS; nothing in it is run
  demo       the demo corpus; SOURCE is "-"
  iemocap, meld
             recordings: as awtpn extract, with its defaults; it has the options, and takes clips of your own
"""
EXAMPLES = """examples:
  awtpn pack features.npz data/mine --format npz
  awtpn pack clips.csv s3://corpus/mine --format table --labels neutral,happy,sad --on_bad skip
  awtpn pack CMU_MOSEI data/mosei --format mosei --audio CMU_MOSEI_COVAREP.csd \\
      --video CMU_MOSEI_VisualFacet42.csd --folds cmu_mosei_std_folds.py
"""


def add_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="features -> shards",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=local_or_url, help="what to read; see the formats")
    parser.add_argument("out", metavar="OUT", help="folder to write, any fsspec URL")
    parser.add_argument(
        "--format",
        required=True,
        choices=[*SOURCES, "demo", *RECORDED],
        metavar="FORMAT",
        help="how SOURCE is written; one of the formats above",
    )
    parser.add_argument(
        "--labels", type=comma_separated, metavar="A,B,...", help="class names in label order"
    )
    parser.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="stored precision (default: float16)",
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
        help="bad utterances: stop (default; of recordings skip), or leave out and list",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there already")
    add_store_options(parser)
    corpora = parser.add_argument_group("what single formats take")
    corpora.add_argument(
        "--label_set",
        metavar="SET",
        help="mosei: emotion (default), sentiment2, sentiment3, sentiment7; mmsa: classification (default), "
        "or sentiment2, sentiment3, sentiment7; iemocap: 4 (default) or 6",
    )
    corpora.add_argument(
        "--audio",
        metavar="FILE",
        help="mosei: the sequence of sound, a name in SOURCE or a path; iemocap, meld: an encoder",
    )
    corpora.add_argument("--video", metavar="FILE", help="the same of pictures")
    corpora.add_argument("--folds", metavar="FILE", help="mosei: the SDK's cmu_mosei_std_folds.py, or JSON")
    corpora.add_argument(
        "--no_emotion",
        metavar="drop|keep",
        help='mosei: utterances without emotion (default: drop); kept, their label is "none"',
    )
    corpora.add_argument(
        "--text", action="store_const", const=True, help="mmsa: take the features of text, too"
    )
    parser.set_defaults(command=run_pack)


def mebibytes(text: str) -> float:
    """An option's value that is a size in MiB."""
    with contextlib.suppress(ValueError):
        if 0 < (size := float(text)) < math.inf:
            return size
    raise argparse.ArgumentTypeError(f"{text!r} is no size in MiB; write e.g. 256")


def run_pack(options: argparse.Namespace) -> None:
    # Imported here: packing needs webdataset, and with it torch, which `--help` should not wait for.
    from shards.packing.pack import pack
    from shards.sources import demo

    given = {name: getattr(options, name) for name in OPTIONS}
    if options.format in RECORDED:
        # Here --audio and --video name encoders, which all recordings take.
        chosen(RECORDED[options.format], given | {"audio": None, "video": None}, options.format)
        if options.label_set is not None:
            options.label_set = _whole(options.label_set)
        run_as_pack(options)
        return
    read = (lambda source: demo.samples()) if options.format == "demo" else SOURCES[options.format]
    source = read(options.source, **chosen(read, given, options.format))
    manifest = pack(
        source.samples,
        options.out,
        classes=source.classes,
        provenance=source.provenance | {"command": redact_command(["awtpn", *options.words])},
        dtype=options.dtype,
        shard_bytes=max(1, int(options.shard_mb * 2**20)),
        on_bad=options.on_bad or "refuse",
        storage_options=options.storage_options,
        overwrite=options.overwrite,
        total=source.total,
    )
    print_splits(manifest)
    if manifest.skipped:
        print(f"{manifest.skipped} bad utterances left out; see skipped.jsonl in {options.out}")
    print(f"packed; train with: {how_to_train(manifest, options.out)}")


def chosen(read: Callable[..., Any], given: Mapping[str, Any], format_name: str) -> dict[str, Any]:
    """The options given for a source, as arguments of its `read`; those not given are None.

    Raises:
        ValueError: one that the source does not have.
    """
    has = [name for name in inspect.signature(read).parameters if name in given]
    for name, value in given.items():
        if value is not None and name not in has:
            takes = ", ".join(f"--{own}" for own in has) or "none of these options"
            raise ValueError(f"--{name} does not belong to --format {format_name}, which takes {takes}")
    return {name: given[name] for name in has if given[name] is not None}


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"--label_set {text}: must be a number of classes")
    return int(text)
