"""What `awtpn pack` and `awtpn extract` print when a dataset is written."""

from __future__ import annotations

from shlex import quote

from awtpn.model.settings import PUBLISHED_WEIGHTS
from shards.format.feature_space import recorded_constant
from shards.format.schema import QUANTIZED, Manifest
from shards.format.targets import CLASS_TARGET, CLASSES, OPTIONAL, target_in_words
from shards.safe_io.printable import join_lines, plural

# Metadata columns that corpora are usually cross-validated by.
FOLD_COLUMNS = ("fold", "session", "speaker", "actor", "subject")


def print_splits(manifest: Manifest) -> None:
    """Print the number of utterances and shards of each split."""
    print(
        join_lines(
            f"{name}: {split.utterances} utterances in {plural(len(split.shards), 'shard')}"
            for name, split in manifest.splits.items()
        )
    )


def print_targets(manifest: Manifest) -> None:
    """Print what is to be recognized, unless it is the classes and nothing else."""
    own = manifest.target
    further = {name: target for name, target in manifest.targets.items() if target != own}
    if not own.is_classes:
        named = [name for name, target in manifest.targets.items() if target == own]
        print(f"target{f', named {named[0]}' if named else ''}: {target_in_words(own)}")
        further |= {CLASS_TARGET: CLASSES} if manifest.classes else {}
    for name, target in further.items():
        print(f"further target: {target_in_words(target)}; choose it with --data.target {quote(name)}")


def print_quantized(manifest: Manifest) -> None:
    """Print the largest error of int8 features, and how many values were clipped."""
    facts = manifest.provenance.get(QUANTIZED)
    if not facts:
        return
    errors = ", ".join(f"{name} {100 * error:.3g} %" for name, error in facts["largest_error"].items())
    print(f"int8: largest error of a dimension, as a share of its standard deviation: {errors}")
    for split, clipped in facts["clipped"].items():
        counts = [
            f"{count:,} of {manifest.splits[split].steps[name] * manifest.modalities[name].dim:,} of {name}"
            for name, count in clipped.items()
            if count
        ]
        if counts:
            print(f"int8: values clipped in split {split}: {', '.join(counts)}")


def print_constant(manifest: Manifest) -> None:
    """Print how many clips lack a modality because it never changes in them."""
    for name, count in recorded_constant(manifest.provenance)[1].items():
        found = manifest.modalities.get(name)
        lacking = name if found is not None and found.recording else f"features of {name}"
        print(f"{count} clips have no {lacking}, which never changes; --keep_constant keeps it")


def how_to_use(manifest: Manifest, out: str) -> str:
    """What can be done with the dataset in `out`, on a line each: train on features, use recordings."""
    recorded = [name for name, modality in manifest.modalities.items() if modality.recording]
    lines = []
    if len(recorded) < len(manifest.modalities):
        lines.append(f"train with: {how_to_train(manifest, out)}")
    if recorded:
        encoders = {"audio": "--audio logmel", "video": "--video descriptor"}
        options = [encoders.get(name, "") or f"--{name} ENCODER" for name in recorded]
        options += [f"--{name} none" for name in encoders if name not in recorded]
        lines.append(
            f"make features of the recordings with: awtpn extract {quote(out)} OUT {' '.join(options)}"
        )
        lines.append(
            f"read the recordings ({', '.join(recorded)}) with shards.FeatureStream or webdataset; "
            f"see what they are with: awtpn shards info {quote(out)}"
        )
    return join_lines(lines)


def how_to_train(manifest: Manifest, out: str) -> str:
    """The command that trains on the dataset in `out`; if it has no splits, the one that cross-validates.

    Without splits and metadata it says how to get either, since a run would have nothing to test on. It
    chooses the modalities with features, since no model takes recordings.
    """
    modalities = [name for name, modality in manifest.modalities.items() if not modality.recording]
    # Cross-validation refuses a column that utterances lack, and the target itself.
    columns = [
        name
        for name, kind in manifest.columns.items()
        if kind != OPTIONAL and name not in manifest.target.columns
    ]
    keys = f"--data.train {quote(out)}"
    if set(modalities) != set(PUBLISHED_WEIGHTS):
        # Those of the default model first: of a pair the first is the anchor.
        modalities.sort(key=lambda name: [*PUBLISHED_WEIGHTS, name].index(name))
        keys += f" --model.modalities {','.join(modalities)}"
    if list(manifest.splits) != ["all"]:
        return f"awtpn train {keys}"
    if not columns:
        return (
            f"awtpn train {keys} (trains on all utterances and tests on none: to test, make the "
            'dataset with the splits "train" and "test", or with a metadata column to cross-validate by)'
        )
    usual = next((name for name in FOLD_COLUMNS if name in columns), None)
    command = f"awtpn cross-validate {keys} --by {usual or 'COLUMN'}"
    return command if usual else f"{command}, a column of metadata; it has {', '.join(columns)}"
