"""`awtpn shards`: inspect and check packed datasets, index existing tars, and plan for a cluster."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from awtpn.config.option_types import OR_DEMO, add_store_options, comma_separated, takes_dataset
from shards.format.precision_names import long_name
from shards.format.schema import FLOATS
from shards.format.split_names import split_from_url_or_option
from shards.safe_io.printable import printable

# At most so many utterances are named in the printed summary.
SHOWN = 5

EXAMPLES = """examples:
  awtpn shards info data/meld
  awtpn shards info demo
  awtpn shards preview s3://corpus/meld --split train -n 1
  awtpn shards verify s3://corpus/meld --workers 16
  awtpn shards simulate s3://corpus/meld --nodes 64 --gpus-per-node 8 --global-batch 4096
"""


def add_shards(commands: Any) -> None:
    parser = commands.add_parser(
        "shards",
        help="inspect, check, index and simulate packed datasets",
        description="Inspect packed datasets, check them, index existing tars, and plan for a cluster.",
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


def _add(actions: Any, name: str, about: str, url: str = f"packed dataset, any fsspec URL; {OR_DEMO}") -> Any:
    parser = actions.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
    parser.add_argument("url", metavar="URL", help=url)
    takes_dataset(parser, "url")
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
    parser.set_defaults(command=_run_info)


def _run_info(options: argparse.Namespace) -> None:
    from shards.tools.info import format_info, info

    print(format_info(info(options.url, **_store(options))))


def _add_preview(actions: Any) -> None:
    parser = _add(actions, "preview", "show the first utterances")
    parser.add_argument("-n", type=int, default=3, metavar="N", help="number of utterances (default: 3)")
    parser.add_argument("--split", metavar="NAME", help="split to show (default: the first)")
    parser.set_defaults(command=_run_preview)


def _run_preview(options: argparse.Namespace) -> None:
    from shards.tools.info import format_preview, preview

    split_from_url_or_option(options.url, options.split)
    for utterance in preview(options.url, options.n, split=options.split, **_store(options)):
        print(format_preview(utterance))


def _add_verify(actions: Any) -> None:
    parser = _add(actions, "verify", "check every hash, in parallel, and name damaged shards and keys")
    parser.add_argument(
        "--workers", type=int, default=4, metavar="N", help="files checked at a time (default: 4)"
    )
    parser.set_defaults(command=_run_verify)


def _run_verify(options: argparse.Namespace) -> None:
    from shards.tools.verify import format_verified, verify

    found = verify(options.url, workers=options.workers, **_store(options))
    print(format_verified(found))
    if found.faults:
        sys.exit(1)


def _add_index(actions: Any) -> None:
    parser = _add(
        actions,
        "index",
        "index existing tars as a dataset, without copying those that can be read in place; where keys "
        "repeat between tars, the tar's name is put before them",
        "folder of tars, any fsspec URL",
    )
    takes_dataset(parser, "")  # where it would write, it takes no demo
    parser.add_argument(
        "--labels",
        type=comma_separated,
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
        type=long_name,
        choices=FLOATS,
        help="stored precision of decoded arrays (default: float16 if all arrays are float16, else float32)",
    )
    parser.add_argument(
        "--out", metavar="URL", help="folder for decoded shards, any fsspec URL (default: the cache)"
    )
    parser.set_defaults(command=_run_index)


def _run_index(options: argparse.Namespace) -> None:
    from shards.tools.index_tars import index_url

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
        "estimate what an epoch needs of a cluster (reads, cache, balance), without running it",
        f"packed dataset, {OR_DEMO}; or with --synthetic a size, such as 100000000x10000 (utterances "
        "x shards)",
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
    parser.add_argument("--synthetic", action="store_true", help="URL is a size, not a dataset")
    parser.set_defaults(command=_run_simulate)


def _run_simulate(options: argparse.Namespace) -> None:
    from shards.storage.store import open_dataset
    from shards.tools.simulate import format_report, simulate, split_sizes, synthetic_sizes

    if options.synthetic:
        layout = synthetic_sizes(options.url)
    else:
        split_from_url_or_option(options.url, options.split)
        store, manifest, fragment = open_dataset(options.url, options.cache_dir, options.storage_options)
        layout = split_sizes(store, manifest, fragment or options.split or "train")
    report = simulate(
        layout, options.nodes, options.gpus_per_node, options.global_batch, streams=options.streams
    )
    print(format_report(report))
