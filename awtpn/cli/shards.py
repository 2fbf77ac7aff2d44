"""`awtpn shards`: look at a dataset, check it, take in tars of others, and plan for a cluster."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from shlex import quote
from typing import Any

from shards.format.schema import Manifest
from shards.format.split_names import named_once
from shards.safe_io.bounded_json import parse_json
from shards.safe_io.json_text import find_not_finite
from shards.safe_io.printable import join_lines, printable
from shards.storage.store import open_dataset
from shards.tools.index_tars import index_url
from shards.tools.info import format_info, format_preview, info, preview
from shards.tools.simulate import format_report, simulate, split_sizes, synthetic_sizes
from shards.tools.verify import format_verified, verify

# Columns of metadata that corpora are cross-validated by.
FOLD_COLUMNS = ("fold", "session", "speaker", "actor", "subject")
# Utterances named in a text; all are in the result.
SHOWN = 5

EXAMPLES = """examples:
  awtpn shards info data/meld
  awtpn shards preview s3://corpus/meld --split train -n 1
  awtpn shards verify s3://corpus/meld --workers 16
  awtpn shards simulate s3://corpus/meld --nodes 64 --gpus-per-node 8 --global-batch 4096
"""


def add_shards(commands: Any) -> None:
    parser = commands.add_parser(
        "shards",
        help="look at, check, index and simulate packed datasets",
        description="Look at packed datasets, check them, take in tars of others, and plan for a cluster.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=lambda options: parser.print_help())
    actions = parser.add_subparsers(metavar="ACTION")
    _add_info(actions)
    _add_preview(actions)
    _add_verify(actions)
    _add_index(actions)
    _add_simulate(actions)


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """Where data is and how to get at it, for every command that reads or writes datasets."""
    parser.add_argument(
        "--storage_options",
        type=storage_options,
        metavar="JSON",
        help='options for fsspec, e.g. \'{"endpoint_url": "https://..."}\'',
    )


def json_object(text: str) -> dict[str, Any]:
    """An option's value that is a JSON object."""
    with contextlib.suppress(ValueError):
        if isinstance(value := parse_json(text, "the option"), dict) and find_not_finite(value) is None:
            return value
    raise argparse.ArgumentTypeError(f'{text!r} is no JSON object; write e.g. \'{{"name": "value"}}\'')


def finite_number(text: str) -> float:
    """An option's value that is a number, and neither NaN nor infinite."""
    with contextlib.suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no finite number")


def storage_options(text: str) -> dict[str, Any]:
    """`json_object`, of which no error shows anything."""
    try:
        return json_object(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            'what is given is no JSON object; write e.g. \'{"name": "value"}\''
        ) from None


def words(text: str) -> list[str]:
    """An option's list, written with commas."""
    return text.split(",")


def print_splits(manifest: Manifest) -> None:
    """What a dataset that was just written holds."""
    print(
        join_lines(
            f"{name}: {split.utterances} utterances in {len(split.shards)} shards"
            for name, split in manifest.splits.items()
        )
    )


def how_to_train(manifest: Manifest, out: str) -> str:
    """The command that trains on a dataset that was just written; where it is not split, on folds of it."""
    modalities, columns = list(manifest.modalities), list(manifest.columns)
    keys = f"--data.train {quote(out)}"
    if len(modalities) == 1:
        keys += f" --model.modalities '{json.dumps(modalities)}'"
    if list(manifest.splits) != ["all"]:
        return f"python launch/train.py {keys}"
    usual = next((name for name in FOLD_COLUMNS if name in columns), None)
    command = f"python launch/cross_validate.py {keys} --by {usual or 'COLUMN'}"
    return command if usual else f"{command}, a column of metadata; it has {', '.join(columns) or 'none'}"


def _add(actions: Any, name: str, about: str, url: str = "packed dataset, any fsspec URL") -> Any:
    parser = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    parser.add_argument("url", metavar="URL", help=url)
    parser.add_argument(
        "--cache_dir",
        metavar="DIR",
        help="where remote files are kept (default: $AWTPN_CACHE_DIR, or ~/.cache/awtpn-shards)",
    )
    add_store_options(parser)
    return parser


def _store(options: argparse.Namespace) -> dict[str, Any]:
    return {"cache_dir": options.cache_dir, "storage_options": options.storage_options}


def _add_info(actions: Any) -> None:
    parser = _add(actions, "info", "show schema, sizes, lengths, classes, and how the features were made")
    parser.set_defaults(command=lambda o: print(format_info(info(o.url, **_store(o)))))


def _add_preview(actions: Any) -> None:
    parser = _add(actions, "preview", "show the first utterances")
    parser.add_argument("-n", type=int, default=3, metavar="N", help="how many (default: 3)")
    parser.add_argument("--split", metavar="NAME", help="of which split (default: the first)")
    parser.set_defaults(command=_run_preview)


def _run_preview(options: argparse.Namespace) -> None:
    named_once(options.url, options.split)
    for shown in preview(options.url, options.n, split=options.split, **_store(options)):
        print(format_preview(shown))


def _add_verify(actions: Any) -> None:
    parser = _add(actions, "verify", "check every hash, in parallel; name damaged shards and keys")
    parser.add_argument(
        "--workers", type=int, default=4, metavar="N", help="files checked at a time (default: 4)"
    )
    parser.set_defaults(command=_run_verify)


def _run_verify(options: argparse.Namespace) -> None:
    found = verify(options.url, workers=options.workers, **_store(options))
    print(format_verified(found))
    if found.faults:
        sys.exit(1)


def _add_index(actions: Any) -> None:
    parser = _add(
        actions,
        "index",
        "make a dataset of tars that others made, without copying them where they can be read in place; "
        "where keys begin anew in each tar, its name is put before them",
        "folder of tars, any fsspec URL",
    )
    parser.add_argument(
        "--labels",
        type=words,
        metavar="A,B,...",
        help="class names in label order (default: those found, sorted)",
    )
    parser.add_argument(
        "--label_field", default="label", metavar="NAME", help="JSON field of the label (default: label)"
    )
    parser.add_argument(
        "--label_member",
        metavar="ENDING",
        help="take labels from the text of members <key>.ENDING, say txt (default: the JSON field, else cls)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        help="stored precision of what has to be decoded (default: float16 where all is, else float32)",
    )
    parser.add_argument(
        "--out", metavar="URL", help="folder for decoded shards, any fsspec URL (default: the cache)"
    )
    parser.set_defaults(command=_run_index)


def _run_index(options: argparse.Namespace) -> None:
    made = index_url(
        options.url,
        classes=options.labels,
        label=options.label_field,
        label_member=options.label_member,
        dtype=options.dtype,
        out=options.out,
        **_store(options),
    )
    how = f"decoded, since {made.decoded}" if made.decoded else "read in place"
    print(f"indexed: {made.url} ({how}); manifest in {made.folder}")
    for extension, count in made.ignored.items():
        print(printable(f"left out: {count} members {extension}"))
    if made.without_arrays:
        shown = printable(", ".join(made.without_arrays[:SHOWN]))
        more = ", ..." if len(made.without_arrays) > SHOWN else ""
        print(f"left out: {len(made.without_arrays)} utterances without an array: {shown}{more}")


def _add_simulate(actions: Any) -> None:
    parser = _add(
        actions,
        "simulate",
        "tell what an epoch asks of a cluster, without running it",
        "packed dataset; or with --synthetic a made-up one, such as 100000000x10000 (utterances x shards)",
    )
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="machines of the cluster")
    parser.add_argument("--gpus-per-node", type=int, required=True, metavar="N", help="ranks on each of them")
    parser.add_argument(
        "--global-batch", type=int, required=True, metavar="N", help="utterances per step over all ranks"
    )
    parser.add_argument("--split", metavar="NAME", help="split to plan for (default: train)")
    parser.add_argument(
        "--streams", type=int, metavar="N", help="canonical streams (default: as training chooses them)"
    )
    parser.add_argument("--synthetic", action="store_true", help="URL is the size of a made-up dataset")
    parser.set_defaults(command=_run_simulate)


def _run_simulate(options: argparse.Namespace) -> None:
    if options.synthetic:
        layout = synthetic_sizes(options.url)
    else:
        named_once(options.url, options.split)
        store, manifest, fragment = open_dataset(options.url, options.cache_dir, options.storage_options)
        layout = split_sizes(store, manifest, fragment or options.split or "train")
    report = simulate(
        layout, options.nodes, options.gpus_per_node, options.global_batch, streams=options.streams
    )
    print(format_report(report))
