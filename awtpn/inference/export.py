"""Export a run's model into a folder to share: weights, config.json, checksums and a model card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from awtpn.inference.results_intervals import measure
from awtpn.model.base import ENCODERS, config_of_card
from awtpn.model.encoders.card import parse_records
from awtpn.model.encoders.merging import export_encoders
from awtpn.model.files import (
    CARD_FILE,
    README_FILE,
    WEIGHTS_FILE,
    files_of_encoders,
    find_model,
    read_card,
    read_weights,
    write_checksums,
)
from awtpn.model.models import load_model
from awtpn.model.network import AWTPN
from awtpn.model.sharing.model_card import render_card
from awtpn.model.sharing.privacy import public_card
from awtpn.run.results import RESULTS_FILE, read_results
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import listed


def export(
    source: Path,
    out: Path,
    *,
    licence: str | None = None,
    graph: bool = False,
    merge: bool = False,
    encoders: Mapping[str, str] | None = None,
) -> None:
    """Write the model of a run (its best checkpoint), checkpoint or export into a new folder.

    Args:
        source: the run, checkpoint or export folder.
        out: the folder to write; it is renamed into place when it is complete.
        licence: of the weights, by its name on the hub ("cc-by-nc-sa-4.0").
        graph: also write a graph that runs without this package: see `awtpn.inference.export_graph`.
        merge: also write the encoders within the model, with their trained weights, so that the export needs
            no base models. Of an export that holds its encoders they are always written.
        encoders: by modality where the base model of an encoder is, if it is not where the card says.

    Raises:
        ValueError: `source` has no model, or `out` exists; a graph of a baseline or of a model with encoders
            is asked for; or there are no encoders to merge, or a base model is missing.
    """
    folder = find_model(source)
    if os.path.lexists(out):  # true for a broken link as well, unlike `exists`
        raise ValueError(f"{out} exists already: name a folder that does not exist")
    card = read_card(folder)
    network = config_of_card(card).name
    if graph and network != "awtpn":
        raise ValueError(
            f"{folder} is a {network} model, and only AWTPN has a graph to export: leave out --graph"
        )
    within = list(parse_records(card))
    if graph and within:
        raise ValueError(
            f"{folder} has encoders of {listed(within)}, and a graph takes features: leave out --graph; "
            "--merge writes the encoders as Hugging Face folders, which can be exported by themselves"
        )
    if merge and not within:
        raise ValueError(f"{folder} is a model of features, without encoders to merge: leave out --merge")
    merge = merge or bool(files_of_encoders(card))
    stored = read_results(source, folder)
    if stored.results is not None:
        card["results"] = stored.results
    if stored.results is None and (source / "checkpoints").is_dir():
        print(f"exported without results: {stored.note or f'{source} has no {RESULTS_FILE}'}")
    elif stored.note:
        print(stored.note)
    measured, note = measure(card, source)
    if note:
        print(note)
    model = load_model(folder, encoders) if merge else None
    card = public_card(card)
    card.pop("graph", None)  # if `source` is an export with graphs: they are not copied
    if licence:
        card["licence"] = licence
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if model is None:
            copy_weights(folder / WEIGHTS_FILE, temporary / WEIGHTS_FILE)
        else:
            others = read_weights(folder / WEIGHTS_FILE).items()
            save_file({n: t for n, t in others if not n.startswith(ENCODERS)}, temporary / WEIGHTS_FILE)
            card = public_card(card | {"encoders": export_encoders(model.encoders, temporary)})
        if graph:
            from awtpn.inference.export_graph import write_graphs

            card["graph"] = write_graphs(AWTPN.from_pretrained(folder), temporary)
        (temporary / CARD_FILE).write_text(json_text(card, indent=1) + "\n")
        (temporary / README_FILE).write_text(render_card(card, out.name, measured))
        names = (WEIGHTS_FILE, CARD_FILE, *card.get("graph", ()), *files_of_encoders(card))
        write_checksums(temporary, names)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_weights(source: Path, out: Path) -> None:
    """Copy a safetensors file without its metadata, where other programs may have put private data."""
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    if metadata:
        save_file(load_file(source), out)
    else:
        shutil.copyfile(source, out)
