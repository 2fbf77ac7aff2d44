"""The data of a comparison: packs each source once, for all processes that share the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from awtpn.config.suggestions import similar
from awtpn.experiments.comparison.suite import DATA_FOLDER, Dataset, folder_of
from awtpn.experiments.home import Home
from shards.format.manifest import parse_manifest
from shards.format.schema import MANIFEST
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import listed
from shards.sources import find_sources

RECORD = "comparison"  # in the provenance of a dataset that was packed here: what it was made of
OWN_OPTIONS = ("dtype",)  # of `pack`, not of a format


def missing_sources(datasets: Mapping[str, Dataset], sources: Path | None) -> dict[str, str]:
    """The datasets whose source is not there, and why."""
    reasons = {}
    for name, dataset in datasets.items():
        source = dataset.source
        if source is not None and sources is None:
            reasons[name] = f"its source {source} is in the folder that --sources names, which is not given"
        elif source is not None and sources is not None and not (sources / source).exists():
            reasons[name] = f"there is no {source} in the folder of --sources"
    return reasons


def check_format(dataset: Dataset) -> None:
    """Refuse a format, or options of one, that do not exist.

    Raises:
        ValueError: names the dataset and the option.
    """
    formats = find_sources("Source")
    assert dataset.format is not None
    if dataset.format not in formats:
        raise ValueError(
            f"{dataset.name}: there is no format {dataset.format!r}; there are {listed(formats)}"
        )
    has = (*formats[dataset.format].options, *OWN_OPTIONS)
    for option in dataset.pack:
        if option not in has:
            alike = similar(option, has)
            hint = f"did you mean {' or '.join(alike)}?" if alike else f"it takes {listed(has)}"
            raise ValueError(f"{dataset.name}: format {dataset.format} has no option {option!r}; {hint}")


def url_of(dataset: Dataset, sources: Path | None, folder: Path, home: Home) -> str | None:
    """Where a dataset is packed, after packing it if it is not; None if the command line names the data.

    Args:
        dataset: names its format and source, or its URL.
        sources: the folder of its source.
        folder: of the comparison, or of its curves.
        home: the folder of the comparison; the data is packed where it is.

    Raises:
        ValueError: it cannot be packed, or there is one of other settings.
        OSError: the store of a URL cannot be reached, or refuses.
    """
    if dataset.format is None:
        return dataset.url
    place = folder / DATA_FOLDER / folder_of(dataset.place)
    place.parent.mkdir(parents=True, exist_ok=True)
    at = home.at(place)
    with FileLock(place.with_name(f".{place.name}.lock")):
        # The manifest is written last: where it is, the dataset is complete.
        if (manifest := home.read(place / MANIFEST)) is not None:
            check_same_data(dataset, manifest, at)
        else:
            pack_dataset(dataset, sources, at, home.storage_options)
    return at


def record_of(dataset: Dataset) -> dict[str, Any]:
    """What a dataset is made of, as its manifest records it."""
    options = json.loads(json_text(dict(dataset.pack)))
    return {"format": dataset.format, "source": dataset.source, "options": options}


def check_same_data(dataset: Dataset, manifest: bytes, place: str) -> None:
    """Refuse a folder that holds a dataset of other settings.

    Raises:
        ValueError: names the folder.
    """
    found = parse_manifest(manifest, f"{place}/{MANIFEST}").provenance.get(RECORD)
    if found != record_of(dataset):
        raise ValueError(f"{place} holds data of other settings than {dataset.name} has: give another --dir")


def pack_dataset(dataset: Dataset, sources: Path | None, place: str, storage_options: dict[str, Any]) -> None:
    """Pack a source into the folder `place`, a path or a URL with its options."""
    from shards.packing.pack import pack  # webdataset is slow to import; a repeat finds the data

    assert dataset.format is not None
    options: Mapping[str, Any] = {k: v for k, v in dataset.pack.items() if k not in OWN_OPTIONS}
    given = "-" if dataset.source is None else str((sources or Path()) / dataset.source)
    source = find_sources("Source")[dataset.format].load()(given, **options)
    if source.text_encoder is not None:
        raise ValueError(
            f"{dataset.name}: format {dataset.format} has transcripts, of which no features are made here: "
            "pack it with awtpn pack, and give its url"
        )
    pack(
        source.samples,
        place,
        classes=source.classes,
        provenance={**source.provenance, RECORD: record_of(dataset)},
        dtype=str(dataset.pack.get("dtype", "float16")),
        storage_options=storage_options,
        total=source.total,
        target=source.target,
        targets=source.targets,
    )
