"""Export a run's model into a folder to share: weights, config.json, checksums and a model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from awtpn.inference.results_intervals import measure
from awtpn.model.base import config_of_card
from awtpn.model.files import CARD_FILE, README_FILE, WEIGHTS_FILE, find_model, read_card, write_checksums
from awtpn.model.network import AWTPN
from awtpn.model.sharing.model_card import render_card
from awtpn.model.sharing.privacy import public_card
from awtpn.run.results import RESULTS_FILE, read_results
from shards.safe_io.json_text import json_text


def export(source: Path, out: Path, *, licence: str | None = None, graph: bool = False) -> None:
    """Write the model of a run (its best checkpoint), checkpoint or export into a new folder.

    Args:
        source: the run, checkpoint or export folder.
        out: the folder to write; it is renamed into place when it is complete.
        licence: of the weights, by its name on the hub ("cc-by-nc-sa-4.0").
        graph: also write a graph that runs without this package: see `awtpn.inference.export_graph`.

    Raises:
        ValueError: `source` has no model, or `out` exists; or a graph of a baseline is asked for.
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
    card = public_card(card)
    card.pop("graph", None)  # if `source` is an export with graphs: they are not copied
    if licence:
        card["licence"] = licence
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        copy_weights(folder / WEIGHTS_FILE, temporary / WEIGHTS_FILE)
        if graph:
            from awtpn.inference.export_graph import write_graphs

            card["graph"] = write_graphs(AWTPN.from_pretrained(folder), temporary)
        (temporary / CARD_FILE).write_text(json_text(card, indent=1) + "\n")
        (temporary / README_FILE).write_text(render_card(card, out.name, measured))
        write_checksums(temporary, (WEIGHTS_FILE, CARD_FILE, *card.get("graph", ())))
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
