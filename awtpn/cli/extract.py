"""`awtpn extract`: recordings -> features (or the recordings themselves) -> shards, on one rank or many."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from awtpn.cli.dataset_summary import how_to_use, print_constant, print_splits, print_targets
from awtpn.cli.signature_options import (
    Options,
    add_options,
    arguments,
    given_options,
    has_option,
    options_of,
    two_columns,
)
from awtpn.config.option_types import add_store_options, finite_number
from shards.extraction.encoders import COMPUTING, find_encoders, open_encoder
from shards.format.precision_names import LONG_NAMES, long_name, short_name
from shards.format.schema import DTYPES
from shards.registry import Entry
from shards.sources import find_sources, guess_format
from shards.storage.local_path import is_remote, local_or_url

if TYPE_CHECKING:
    from shards.format.schema import Manifest
    from shards.sources.base import ClipSource

DEFAULT_ENCODERS = {"audio": "logmel", "video": "descriptor", "text": "none"}
# The options of parameters that only encoders of pictures have.
SHORT = {"video_fps": "fps", "video_faces": "faces"}

HELP = """Compute features of recordings with encoders, and pack them into shards. The encoders `waveform` and
`frames` make no features: they store the recordings themselves, 16-bit sound and 8-bit pictures.

formats, guessed from SOURCE where --format is left out:
{formats}
`python -c "help('shards.sources.iemocap')"`, and so on, shows the expected files.

encoders of --audio, --video and --text, where MODEL is a Hugging Face model, a hub id or a local folder:
{encoders}

On many devices: `accelerate launch [...] -m awtpn.cli extract ...`, or the same under torchrun. After a stop,
the same command resumes, on any number of ranks.
"""
EXAMPLES = """examples:
  awtpn extract recordings data/mine
  awtpn extract IEMOCAP_full_release data/iemocap --label_set 6
  awtpn extract clips data/mine --pattern '(?P<actor>\\d+)_(?P<label>[A-Z]{3})' --label_map HAP=happy,SAD=sad
  awtpn extract IEMOCAP_full_release data/iemocap-vad --target vad
  awtpn extract clips.csv data/mine --target regression --target_columns valence=1:5,arousal=1:5
  awtpn extract MELD.Raw data/meld-text --audio none --video none --text chargrams
  awtpn extract recordings data/clips --audio waveform --video frames --faces opencv --video_jpeg 90
  awtpn extract data/clips data/features --audio logmel --video descriptor
  accelerate launch -m awtpn.cli extract MELD.Raw s3://corpus/meld --audio microsoft/wavlm-base-plus \\
      --audio_layer 9 --video openai/clip-vit-base-patch32 --faces opencv --precision bf16
"""


def add_extract(commands: Any) -> None:
    parser = commands.add_parser(
        "extract",
        help="recordings -> features -> shards",
        description=describe(),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(parser)
    parser.set_defaults(command=run_extract)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        type=local_or_url,
        help="corpus, folder or table of recordings, or a dataset of "
        "recordings (waveform, frames), also as a URL",
    )
    parser.add_argument("out", metavar="OUT", help="folder to write, any fsspec URL that all ranks reach")
    sources = find_sources("ClipSource") | text_sources()
    parser.add_argument("--format", choices=list(sources), help="format of SOURCE (default: guessed from it)")

    corpus = parser.add_argument_group("what to read")
    add_options(corpus, source_options(sources), sources)
    corpus.add_argument(
        "--limit", type=int, metavar="N", help="take only N clips of each split, evenly spaced"
    )

    made = parser.add_argument_group("features")
    for modality, default in DEFAULT_ENCODERS.items():
        made.add_argument(
            f"--{modality}",
            default=default,
            metavar="ENCODER",
            help=f"what encodes {modality}; see the encoders (default: {default})",
        )
    for modality in DEFAULT_ENCODERS:
        add_encoder_options(made, modality)
    add_store_text(made)
    made.add_argument(
        "--dtype",
        type=long_name,
        choices=DTYPES,
        default="float16",
        help="stored precision of features (default: float16); recordings are always int16 sound and uint8 "
        "pictures. For int8 extract float16, and then pack the dataset (awtpn pack --format dataset)",
    )

    how = parser.add_argument_group("how to compute them")
    add_compute_options(how)
    how.add_argument(
        "--batch", type=int, default=16, metavar="N", help="clips encoded at a time (default: 16)"
    )
    how.add_argument(
        "--threads", type=int, default=4, metavar="N", help="decoding threads per rank (default: 4)"
    )
    how.add_argument(
        "--clips_per_shard",
        type=int,
        default=256,
        metavar="N",
        help="clips in a shard; a stop costs each rank at most the shard that it is making (default: 256)",
    )
    how.add_argument(
        "--on_bad",
        choices=["refuse", "skip"],
        default="skip",
        help="clips that fail: stop, or leave them out and list them in skipped.jsonl (default: skip)",
    )
    how.add_argument(
        "--keep_constant",
        action="store_true",
        help="also keep sound or pictures that never change: digital silence, identical "
        "pictures (default: such a modality is missing)",
    )
    how.add_argument("--overwrite", action="store_true", help="replace a dataset that is there already")
    how.add_argument(
        "--retry_failed",
        action="store_true",
        help="when resuming: try clips that failed once more, and write their shards anew (for a "
        "finished dataset: --overwrite)",
    )
    how.add_argument(
        "--patience",
        type=finite_number,
        default=30,
        metavar="MINUTES",
        help="after so many minutes without progress a rank counts as dead (default: 30)",
    )
    add_store_options(parser)


def run_extract(options: argparse.Namespace) -> None:
    import torch.distributed as dist

    from awtpn.distributed.accelerate_launch import start_missing_ranks
    from awtpn.distributed.world import init_process_group
    from awtpn.model.device import resolve_device
    from shards.extraction.extract import extract, refuse_int8
    from shards.storage.credentials import redact_command

    refuse_int8(options.dtype, options.out)
    start_missing_ranks([*options.program.for_python, *options.words])
    world = init_process_group()
    encoders = open_encoders(options, str(resolve_device(options.device or world.device)))
    manifest = extract(
        read_source(options),
        options.out,
        **encoders,
        rank=world.rank,
        world_size=world.size,
        all_gather_object=world.all_gather_object,
        clips_per_shard=options.clips_per_shard,
        batch=options.batch,
        threads=options.threads,
        dtype=options.dtype,
        on_bad=options.on_bad,
        keep_constant=options.keep_constant,
        store_text=options.store_text,
        provenance={"command": redact_command([*options.program.typed, *options.words])},
        storage_options=options.storage_options,
        overwrite=options.overwrite,
        retry_failed=options.retry_failed,
        patience=60 * options.patience,
    )
    if manifest is not None:
        report(manifest, options.out)
    # No barrier here: another rank may write its last shard hours later.
    if dist.is_initialized():
        dist.destroy_process_group()


def run_as_pack(options: argparse.Namespace) -> None:
    """`awtpn pack --format iemocap`: an extraction with the built-in encoders.

    Args:
        options: those of `awtpn pack`; options that it lacks have the defaults of `awtpn extract`.
    """
    parser = argparse.ArgumentParser()
    _add_arguments(parser)
    given = {name: value for name, value in vars(options).items() if value is not None}
    run_extract(parser.parse_args([options.source, options.out], argparse.Namespace(**given)))


def read_source(options: argparse.Namespace) -> ClipSource:
    """The clips of SOURCE.

    Raises:
        ValueError: it cannot be read, or an option is not one of its format.
    """
    sources = find_sources("ClipSource") | text_sources()
    name = options.format or guess_format(options.source, sources)
    takes = source_options(sources)
    given = arguments(name, takes, given_options(options, takes))
    modalities = [modality for modality in DEFAULT_ENCODERS if getattr(options, modality) != "none"]
    if name in text_sources():
        source = _text_alone(name, sources[name], options, modalities, given)
    else:
        if "modalities" in sources[name].parameters:
            given["modalities"] = modalities
        if "storage_options" in sources[name].parameters and is_remote(options.source):
            given["storage_options"] = options.storage_options
        source = sources[name].load()(options.source, **given)
    return source if options.limit is None else limited(source, options.limit, modalities)


def text_sources() -> dict[str, Entry]:
    """The sources of features that have transcripts, too."""
    return {name: e for name, e in find_sources("Source").items() if "text_encoder" in e.parameters}


def source_options(sources: Mapping[str, Entry]) -> Options:
    """The options of sources, without those that are encoders here."""
    own = {*DEFAULT_ENCODERS, "text_encoder"}
    return {name: takers for name, takers in options_of(sources).items() if name not in own}


def _text_alone(
    name: str, entry: Entry, options: argparse.Namespace, modalities: list[str], given: dict[str, Any]
) -> ClipSource:
    """The transcripts of a source of features.

    Raises:
        ValueError: features of audio or video are asked for.
    """
    from shards.extraction.text_features import text_clips

    if modalities != ["text"]:
        raise ValueError(
            f"--format {name} has features and transcripts, but no recordings: for its text alone give "
            "--audio none --video none --text ENCODER; for its features, too: "
            f"awtpn pack SOURCE OUT --format {name} --text_encoder ENCODER"
        )
    if "modalities" in entry.parameters:
        given["modalities"] = []
    return text_clips(entry.load()(options.source, text_encoder=options.text, **given))


def limited(source: ClipSource, most: int, modalities: Sequence[str]) -> ClipSource:
    """At most `most` clips of each split, evenly spaced, so that all classes are among them.

    Args:
        source: of all clips.
        most: of each split.
        modalities: that are wanted: clips without any file of them are not counted.
    """
    import numpy as np

    from shards.extraction.shard_jobs import mark_missing_files
    from shards.sources.base import Clip

    source = mark_missing_files(source, modalities)
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


def open_encoders(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """By modality the encoder that the options ask for; None for "none"."""
    return {
        modality: open_one_encoder(modality, getattr(options, modality), options, device)
        for modality in DEFAULT_ENCODERS
    }


def open_one_encoder(modality: str, spec: str, options: argparse.Namespace, device: str) -> Any:
    """An encoder by name, with its options; None for "none"."""
    parameters = {name for entry in _encoders(modality).values() for name in entry.options}
    given = {name: getattr(options, _option(modality, name)) for name in sorted(parameters)}
    if (
        spec == "none"
        and modality == "text"
        and (names := [n for n, value in given.items() if is_given(value)])
    ):
        option = _option(modality, names[0])
        raise ValueError(
            f"--{option}: no features of text are made; name an encoder, such as --text chargrams"
        )
    return open_encoder(modality, spec, device=device, dtype=LONG_NAMES[options.precision], **given)


def is_given(value: Any) -> bool:
    """Whether an option was given; 0 is a value."""
    return value is not None and value is not False


def encoder_options(modality: str) -> Options:
    """The options of a modality's encoders."""
    return options_of(_encoders(modality), partial(_option, modality))


def add_encoder_options(parser: Any, modality: str) -> None:
    add_options(parser, encoder_options(modality), _encoders(modality))


def add_store_text(parser: Any) -> None:
    parser.add_argument(
        "--store_text",
        action="store_true",
        help="also store the words of texts as metadata (default: only their features; words are personal "
        "data)",
    )


def add_compute_options(parser: Any) -> None:
    parser.add_argument(
        "--device", help="where encoders compute (default: the rank's own GPU if there is one, else cpu)"
    )
    parser.add_argument(
        "--precision",
        type=short_name,
        choices=LONG_NAMES,
        default="fp32",
        help="precision in which encoders compute (default: fp32)",
    )


def _encoders(modality: str) -> dict[str, Entry]:
    """The encoders of a modality, named as in help, without the parameters that are set for all of them."""
    found = {}
    for name, entry in find_encoders(modality).items():
        own = {n: p for n, p in entry.options.items() if n not in COMPUTING and has_option(p)}
        shown = f"MODEL ({name})" if "architectures" in entry.attributes else name
        found[shown] = replace(entry, parameters=own)
    return found


def _option(modality: str, parameter: str) -> str:
    """The option of an encoder's parameter: --audio_step of `step_seconds`."""
    name = f"{modality}_{parameter.removesuffix('_seconds')}"
    return SHORT.get(name, name)


def describe() -> str:
    """The description of the command, with all formats and encoders."""
    formats = {
        name: f"{entry.summary} SOURCE: {entry.parameters['source'].help}."
        for name, entry in find_sources("ClipSource").items()
    }
    encoders = {"none": "no features of this modality"}
    for modality in DEFAULT_ENCODERS:
        encoders |= {name: f"{modality}: {entry.summary}" for name, entry in _encoders(modality).items()}
    formats |= {
        name: f"{entry.summary} Text alone: --audio none --video none --text ENCODER."
        for name, entry in text_sources().items()
    }
    return HELP.format(formats=two_columns(formats), encoders=two_columns(encoders))


def report(manifest: Manifest, out: str) -> None:
    """Print what an extraction wrote, and how to use it."""
    print_splits(manifest)
    print_targets(manifest)
    if manifest.skipped:
        print(f"{manifest.skipped} clips left out; skipped.jsonl in {out} lists them with the causes")
    print_constant(manifest)
    print(f"extracted; {how_to_use(manifest, out)}")
