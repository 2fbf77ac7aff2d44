"""The `awtpn` command: pack features into shards, look at them, use and share trained models.

Training and evaluation are `launch/train.py` and `launch/evaluate.py`, since launchers start scripts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from awtpn.cli_shards import add_shards, add_store_options
from shards import FeatureStream, pack
from shards.sources import demo, npz, reference, table
from shards.sources.source import Source

SOURCES: dict[str, Callable[..., Source]] = {
    "reference": reference.read,
    "table": table.read,
    "npz": npz.read,
}


def main(argv: Sequence[str] | None = None) -> None:
    options = make_parser().parse_args(argv)
    try:
        options.command(options)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has seen enough: no complaint at exit either
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="awtpn", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_pack(commands)
    add_shards(commands)
    add_export(commands)
    add_predict(commands)
    add_compare(commands)
    add_doctor(commands)
    return parser


# --- pack ----------------------------------------------------------------------------------------

PACK_HELP = """Pack features into WebDataset tar shards with an index and a manifest.

formats:
  reference  a folder with the published {train,val,test}.pt: audio_feats, video_feats, labels
  table      a CSV or JSONL file: key, split, label, audio, video (paths of .npy files, relative to the
             table; an empty one is a missing modality); further columns are kept as metadata
  npz        one file of packed arrays: X [sum T, D] with X_offsets [U+1], or X [U, T, D], per modality;
             label, label_names, ids; further arrays of U entries are kept as metadata
  demo       the demo corpus; SOURCE is "-"
"""


def add_pack(commands: Any) -> None:
    parser = commands.add_parser(
        "pack",
        help="features -> shards",
        description=PACK_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="what to read; see the formats")
    parser.add_argument("out", metavar="OUT", help="folder to write, any fsspec URL")
    parser.add_argument("--format", required=True, choices=[*SOURCES, "demo"])
    parser.add_argument("--labels", help="class names in label order, separated by commas")
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="stored precision")
    parser.add_argument("--shard_mb", type=float, default=256, help="close a shard at this size (MiB)")
    parser.add_argument(
        "--on_bad",
        choices=["refuse", "skip"],
        default="refuse",
        help="bad utterances: stop, or leave out and list",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there already")
    add_store_options(parser)
    parser.set_defaults(command=run_pack)


def run_pack(options: argparse.Namespace) -> None:
    labels = options.labels.split(",") if options.labels else None
    if options.format == "demo":
        source = demo.samples()
    else:
        source = SOURCES[options.format](options.source, labels=labels)
    manifest = pack(
        source.samples,
        options.out,
        classes=source.classes,
        provenance=source.provenance | {"command": " ".join(["awtpn", *sys.argv[1:]])},
        dtype=options.dtype,
        shard_bytes=int(options.shard_mb * 2**20),
        on_bad=options.on_bad,
        storage_options=options.storage_options,
        overwrite=options.overwrite,
        total=source.total,
    )
    for name, split in manifest.splits.items():
        print(f"{name}: {split.utterances} utterances in {len(split.shards)} shards")
    if manifest.skipped:
        print(f"{manifest.skipped} bad utterances left out; see skipped.jsonl in {options.out}")
    print(f"packed; train with: python launch/train.py --data.train {options.out}")


# --- models --------------------------------------------------------------------------------------


def add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export", help="run -> one folder with the model, to share or to predict with"
    )
    parser.add_argument("run", metavar="RUN", help="run (its best checkpoint) or checkpoint folder")
    parser.add_argument("out", metavar="DIR", help="folder to write; must not exist")
    parser.set_defaults(command=run_export)


def run_export(options: argparse.Namespace) -> None:
    from awtpn.checkpoint import export  # torch is slow to import; packing needs none of this

    export(Path(options.run), Path(options.out))
    print(f"exported to {options.out}")


def add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict", help="labels, probabilities and reliability weights, a JSON line each"
    )
    parser.add_argument("model", metavar="MODEL", help="run, checkpoint or export folder")
    parser.add_argument("input", metavar="INPUT", help="packed dataset, any fsspec URL; #split names a split")
    parser.add_argument("--split", default="test", help="split of INPUT (default: test)")
    parser.add_argument("--out", help="file to write; default: standard output")
    parser.add_argument("--device", default="cpu")
    add_store_options(parser)
    parser.set_defaults(command=run_predict)


def run_predict(options: argparse.Namespace) -> None:
    from awtpn.data import check_feature_space
    from awtpn.predictor import Predictor

    predictor = Predictor.from_pretrained(options.model, options.device)
    stream = FeatureStream(
        options.input,
        split=options.split,
        shuffle=False,
        modalities=list(predictor.model.feature_dims),
        storage_options=options.storage_options,
    )
    check_feature_space(predictor.model, stream)
    with open(options.out, "w") if options.out else contextlib.nullcontext(sys.stdout) as file:
        for key, prediction in predictor.predict_stream(stream):
            file.write(json.dumps({"key": key, **prediction.as_json()}) + "\n")


# --- runs ----------------------------------------------------------------------------------------


def add_compare(commands: Any) -> None:
    parser = commands.add_parser("compare", help="two runs: same data? same losses? same weights?")
    parser.add_argument("a", metavar="RUN_A", type=Path)
    parser.add_argument("b", metavar="RUN_B", type=Path)
    parser.add_argument("--loss_tolerance", type=float, default=1e-5, help="relative, at every step")
    parser.add_argument(
        "--weight_tolerance", type=float, default=1e-4, help="absolute, in the latest checkpoints"
    )
    parser.set_defaults(command=run_compare)


def run_compare(options: argparse.Namespace) -> None:
    from awtpn.compare import compare_runs, format_comparison

    comparison = compare_runs(options.a, options.b)
    print(format_comparison(comparison))
    equal = (
        comparison.same_data
        and comparison.largest_loss_gap <= options.loss_tolerance
        and comparison.largest_weight_gap <= options.weight_tolerance
    )
    print("equal within tolerance" if equal else "NOT equal within tolerance")
    if not equal:
        sys.exit(1)


def add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="find what would spoil a run before it begins",
        description="Alone, or on all ranks: torchrun [...] -m awtpn.cli doctor --run_dir DIR --data URL",
    )
    parser.add_argument("--run_dir", type=Path, help="run folder that the ranks would share")
    parser.add_argument(
        "--data", nargs="*", default=[], metavar="URL", help="packed datasets that every rank must read"
    )
    add_store_options(parser)
    parser.set_defaults(command=run_doctor)


def run_doctor(options: argparse.Namespace) -> None:
    from awtpn.doctor import examine

    if not examine(options.run_dir, options.data, options.storage_options):
        sys.exit(1)


if __name__ == "__main__":
    main()
