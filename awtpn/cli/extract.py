"""`awtpn extract`: recordings -> features -> shards, alone or over the ranks of any launcher."""

from __future__ import annotations

import argparse
import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from awtpn.cli.dataset_summary import how_to_train, print_splits
from awtpn.config.option_types import add_store_options, comma_separated, finite_number
from shards.format.feature_space import constant_of
from shards.format.schema import Manifest
from shards.sources import iemocap, meld, recordings
from shards.sources.base import Clip, ClipSource
from shards.storage.credentials import redact_command
from shards.storage.local_path import local_or_url

FORMATS: dict[str, Callable[..., ClipSource]] = {
    "recordings": recordings.read,
    "iemocap": iemocap.read,
    "meld": meld.read,
}
# Per option of a reader the format whose it is.
READER_OPTIONS = {
    name: owner for owner, read in FORMATS.items() for name in [*inspect.signature(read).parameters][1:]
}
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

HELP = """Make features of recordings and pack them into shards.

formats, guessed from SOURCE where --format is left out:
  recordings  a table of clips (.csv, .jsonl: key, split, label, path), or a folder of them in which the path
              tells the label: [split/]label/clip.mp4, or --pattern
  iemocap     IEMOCAP_full_release
  meld        MELD.Raw
(`python -c "help('shards.sources.iemocap')"` and so on show the expected files.)

encoders: "none"; the built-in logmel (audio) and descriptor (video), which need no weights; or a Hugging Face
model by hub id or local folder: wav2vec 2.0, HuBERT, WavLM, Whisper; CLIP, SigLIP, ViT, DINOv2, VideoMAE.

Over many devices: `accelerate launch [...] -m awtpn.cli extract ...`, or the same under torchrun. The same
command goes on where it was stopped, on any number of ranks.
"""
EXAMPLES = """examples:
  awtpn extract recordings data/mine
  awtpn extract IEMOCAP_full_release data/iemocap --label_set 6
  awtpn extract clips data/mine --pattern '(?P<actor>\\d+)_(?P<label>[A-Z]{3})' --label_map HAP=happy,SAD=sad
  accelerate launch -m awtpn.cli extract MELD.Raw s3://corpus/meld --audio microsoft/wavlm-base-plus \\
      --audio_layer 9 --video openai/clip-vit-base-patch32 --faces opencv --precision bf16
"""


def add_extract(commands: Any) -> None:
    parser = commands.add_parser(
        "extract",
        help="recordings -> features -> shards",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(parser)
    parser.set_defaults(command=run_extract)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", type=local_or_url, help="corpus, folder or table of recordings"
    )
    parser.add_argument("out", metavar="OUT", help="folder to write, any fsspec URL that all ranks reach")
    parser.add_argument("--format", choices=list(FORMATS), help="default: guessed from SOURCE")

    corpus = parser.add_argument_group("what to read")
    corpus.add_argument(
        "--labels", type=comma_separated, metavar="A,B,...", help="recordings: class names in label order"
    )
    corpus.add_argument(
        "--pattern",
        metavar="REGEX",
        help="recordings: searched in a clip's path; its named groups are label, split, key, and metadata",
    )
    corpus.add_argument(
        "--label_map",
        type=_pairs,
        metavar="A=NAME,...",
        help="recordings: rename labels; those renamed to nothing (XXX=) are left out",
    )
    corpus.add_argument(
        "--label_set", type=int, choices=[4, 6], help="iemocap: number of classes (default: 4)"
    )
    corpus.add_argument(
        "--test_session", type=int, metavar="N", help="iemocap: this session becomes the split test"
    )
    corpus.add_argument(
        "--val_session", type=int, metavar="N", help="iemocap: this session becomes the split val"
    )
    corpus.add_argument(
        "--markers_side",
        choices=["left", "right"],
        help="iemocap: where the speaker with markers sits (default: left)",
    )
    corpus.add_argument("--limit", type=int, metavar="N", help="N clips of each split only, evenly drawn")

    made = parser.add_argument_group("features")
    made.add_argument("--audio", default="logmel", metavar="ENCODER", help="of sound (default: logmel)")
    made.add_argument(
        "--video", default="descriptor", metavar="ENCODER", help="of pictures (default: descriptor)"
    )
    for modality, default in (("audio", "the last"), ("video", "the model's pooled output, or the last")):
        made.add_argument(
            f"--{modality}_layer", type=int, metavar="N", help=f"hidden layer (default: {default})"
        )
        made.add_argument(
            f"--{modality}_step",
            type=finite_number,
            metavar="SECONDS",
            help="length of a step (default: the encoder's own)",
        )
        made.add_argument(
            f"--{modality}_revision", metavar="REVISION", help="branch, tag or commit on the hub"
        )
    made.add_argument("--fps", type=finite_number, metavar="N", help="pictures per second (default: 10)")
    made.add_argument(
        "--faces",
        choices=["none", "opencv"],
        default="none",
        help="opencv: show the video encoder faces only (default: none, the whole picture)",
    )
    made.add_argument(
        "--dtype",
        choices=["float16", "float32"],
        default="float16",
        help="stored precision (default: float16)",
    )

    how = parser.add_argument_group("how")
    how.add_argument(
        "--device", help="where encoders compute (default: the rank's own GPU where there is one, else cpu)"
    )
    how.add_argument(
        "--precision",
        choices=list(PRECISIONS),
        default="fp32",
        help="what encoders compute in (default: fp32)",
    )
    how.add_argument(
        "--batch", type=int, default=16, metavar="N", help="clips encoded at a time (default: 16)"
    )
    how.add_argument(
        "--threads", type=int, default=4, metavar="N", help="threads per rank that decode (default: 4)"
    )
    how.add_argument(
        "--clips_per_shard",
        type=int,
        default=256,
        metavar="N",
        help="also what a stop may cost each rank (default: 256)",
    )
    how.add_argument(
        "--on_bad",
        choices=["refuse", "skip"],
        default="skip",
        help="clips that fail: stop, or leave out and list (default: skip)",
    )
    how.add_argument(
        "--keep_constant",
        action="store_true",
        help="make features of streams that never change, too: digital silence, pictures that are all alike "
        "(default: a clip lacks such a stream)",
    )
    how.add_argument("--overwrite", action="store_true", help="replace a dataset that is there already")
    how.add_argument(
        "--retry_failed",
        action="store_true",
        help="when going on: make shards again of which clips were left out",
    )
    how.add_argument(
        "--patience",
        type=finite_number,
        default=30,
        metavar="MINUTES",
        help="give up a rank that has made nothing for so long (default: 30)",
    )
    add_store_options(parser)


def run_extract(options: argparse.Namespace) -> None:
    import torch.distributed as dist

    from awtpn.distributed.accelerate_launch import start_missing_ranks
    from awtpn.distributed.world import init_process_group
    from awtpn.model.device import resolve_device  # torch is slow to import
    from shards.extraction.extract import extract

    start_missing_ranks(["-m", "awtpn.cli", *options.words])
    world = init_process_group()
    audio, video = open_encoders(options, str(resolve_device(options.device or world.device)))
    manifest = extract(
        read_source(options),
        options.out,
        audio=audio,
        video=video,
        rank=world.rank,
        world_size=world.size,
        all_gather_object=world.all_gather_object,
        clips_per_shard=options.clips_per_shard,
        batch=options.batch,
        threads=options.threads,
        dtype=options.dtype,
        on_bad=options.on_bad,
        keep_constant=options.keep_constant,
        provenance={"command": redact_command(["awtpn", *options.words])},
        storage_options=options.storage_options,
        overwrite=options.overwrite,
        retry_failed=options.retry_failed,
        patience=60 * options.patience,
    )
    if manifest is not None:
        report(manifest, options.out)
    # Nobody waits for the others here: one may make its last shard hours later.
    if dist.is_initialized():
        dist.destroy_process_group()


def run_as_pack(options: argparse.Namespace) -> None:
    """`awtpn pack --format iemocap`: an extraction with the built-in encoders.

    Args:
        options: those of `awtpn pack`; what they do not say is as `awtpn extract` has it.
    """
    parser = argparse.ArgumentParser()
    _add_arguments(parser)
    given = {name: value for name, value in vars(options).items() if value is not None}
    run_extract(parser.parse_args([options.source, options.out], argparse.Namespace(**given)))


def read_source(options: argparse.Namespace) -> ClipSource:
    """The clips of SOURCE.

    Raises:
        ValueError: it cannot be read so, or an option is not one of its format.
    """
    name = options.format or guess_format(Path(options.source))
    given = {key: getattr(options, key) for key in READER_OPTIONS if getattr(options, key) is not None}
    for key in given:
        if READER_OPTIONS[key] != name:
            owner = READER_OPTIONS[key]
            raise ValueError(f"--{key} is an option of --format {owner}, but this is read as {name}")
    source = FORMATS[name](options.source, **given)
    return source if options.limit is None else limited(source, options.limit)


def guess_format(source: Path) -> str:
    """The format of a corpus by what lies in its folder.

    Raises:
        ValueError: there is nothing.
    """
    if not source.exists():
        raise ValueError(f"{source}: no such file or folder")
    if (source / "Session1").is_dir() or any(source.glob("*/Session1")):
        return "iemocap"
    if any(source.glob("*_sent_emo.csv")) or any(source.glob("*/*_sent_emo.csv")):
        return "meld"
    return "recordings"


def limited(source: ClipSource, most: int) -> ClipSource:
    """At most so many clips of each split, evenly drawn, so that all classes are among them."""
    splits: dict[str, list[Clip]] = defaultdict(list)
    for clip in source.clips:
        if isinstance(clip, Clip):
            splits[clip.split].append(clip)
    kept = {
        clips[int(i)].key
        for clips in splits.values()
        for i in np.linspace(0, len(clips), min(most, len(clips)), endpoint=False)
    }
    clips = [clip for clip in source.clips if not isinstance(clip, Clip) or clip.key in kept]
    return replace(source, clips=clips, provenance=source.provenance | {"limit": most})


def open_encoders(options: argparse.Namespace, device: str) -> tuple[Any, Any]:
    """The encoders of sound and picture that the options ask for; None for "none"."""
    from shards.extraction.encoders import open_audio_encoder, open_video_encoder

    dtype = PRECISIONS[options.precision]
    audio = open_audio_encoder(
        options.audio,
        device=device,
        dtype=dtype,
        layer=options.audio_layer,
        step_seconds=options.audio_step,
        revision=options.audio_revision,
    )
    video = open_video_encoder(
        options.video,
        fps=options.fps,
        device=device,
        dtype=dtype,
        layer=options.video_layer,
        step_seconds=options.video_step,
        revision=options.video_revision,
        faces=options.faces,
    )
    return audio, video


def report(manifest: Manifest, out: str) -> None:
    print_splits(manifest)
    if manifest.skipped:
        print(f"{manifest.skipped} clips left out; skipped.jsonl in {out} names them and says why")
    for name, count in constant_of(manifest.provenance)[1].items():
        print(f"{count} clips go without their {name}, which never changes; --keep_constant keeps it")
    print(f"extracted; train with: {how_to_train(manifest, out)}")


def _pairs(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(mark for _, mark, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: write A=NAME,B=OTHER")
    return {label: name for label, _, name in pairs}
