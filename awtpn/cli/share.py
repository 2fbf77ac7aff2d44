"""`awtpn export` and `push`: a trained model for others."""

from __future__ import annotations

import argparse
from shlex import quote
from typing import Any

from awtpn.config.option_types import (
    add_base_options,
    add_store_options,
    base_models,
    path_argument,
    run_argument,
    takes_run,
)


def add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="run -> one folder with the model, to share or to predict with",
        description="Write weights (safetensors), config.json (shape, labels, provenance, results) and a "
        "model card. `awtpn predict`, awtpn.load_model and Predictor.from_pretrained take the folder. Of "
        "encoders within the model it holds what was trained, and names their base models; with --merge it "
        "holds them whole.",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        type=run_argument,
        help="run (its best checkpoint) or checkpoint folder, or the URL of a run",
    )
    takes_run(parser, "run", "best")
    parser.add_argument("out", metavar="DIR", type=path_argument, help="folder to write; must not exist")
    parser.add_argument(
        "--license",
        metavar="ID",
        help='license of the weights, by its name on the hub, e.g. "cc-by-nc-sa-4.0"',
    )
    parser.add_argument(
        "--graph",
        action="store_true",
        help="also write model.pt2 (torch.export), and model.onnx where onnxscript is installed; AWTPN of "
        "features only",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="of a model with encoders: write these, too, with their trained weights, as Hugging Face "
        "folders in DIR/encoders; then the export needs no base models",
    )
    add_base_options(parser)
    add_store_options(parser)
    parser.set_defaults(command=run_export)


def run_export(options: argparse.Namespace) -> None:
    from awtpn.inference.export import export

    export(
        options.run,
        options.out,
        licence=options.license,
        graph=options.graph,
        merge=options.merge,
        encoders=base_models(options),
    )
    print(f"exported to {options.out}; share it with: awtpn push {quote(str(options.out))} USER/MODEL")


def add_push(commands: Any) -> None:
    parser = commands.add_parser(
        "push",
        help="an export folder -> the Hugging Face Hub",
        description="Upload a folder that `awtpn export` wrote, with its card. Log in first: hf auth login.",
    )
    parser.add_argument("folder", metavar="DIR", type=path_argument, help="written by `awtpn export`")
    parser.add_argument("hub_id", metavar="USER/MODEL", help="repository; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.set_defaults(command=run_push)


def run_push(options: argparse.Namespace) -> None:
    from awtpn.model.files import CARD_FILE, README_FILE, read_card
    from awtpn.model.sharing.hub import upload
    from awtpn.model.sharing.privacy import public_encoders, public_provenance

    for name in (CARD_FILE, README_FILE):
        if not (options.folder / name).is_file():
            raise ValueError(
                f"{options.folder} has no {name}: write it with awtpn export RUN {quote(str(options.folder))}"
            )
    card = read_card(options.folder)
    filters = {"provenance": public_provenance, "encoders": public_encoders}
    if any(card.get(name) and public(card[name]) != card[name] for name, public in filters.items()):
        raise ValueError(
            f"{options.folder / CARD_FILE} holds private details of the machine that made it, such as paths: "
            f"write it again with awtpn export {quote(str(options.folder))} NEW_DIR, and push that"
        )
    print(f"in {upload(options.folder, options.hub_id, options.private)}")
