"""The parser of the `awtpn` command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from awtpn.cli.bench import add_bench
from awtpn.cli.extract import add_extract
from awtpn.cli.init import add_init
from awtpn.cli.pack import add_pack
from awtpn.cli.predict import add_predict
from awtpn.cli.runs import add_compare, add_doctor, add_report
from awtpn.cli.shards import add_shards
from awtpn.cli.share import add_export, add_push
from shards.safe_io.versions import installed_version

HELP = "Pack features into shards and inspect them; use, report on and share trained models."
EXAMPLES = """examples:
  awtpn extract recordings data/mine              recordings/LABEL/clip.mp4 -> features in shards
  python launch/train.py --data.train data/mine   train on them; torchrun, accelerate and deepspeed, too
  awtpn report runs/mine-20260101-120000          figures with intervals, curves, cost
  awtpn predict runs/mine-20260101-120000 clip.mp4

`awtpn COMMAND --help` lists the options of a command.
"""


class ShowVersion(argparse.Action):
    """Print the version and exit. Unlike argparse's own action it looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        version = installed_version("awtpn-at-scale")
        print(f"awtpn {version}" if version else "awtpn, not installed but started from its folder")
        parser.exit()


def run_words(words: Sequence[str]) -> None:
    """Parse the words and run the command that they name; `options.words` keeps them for the record."""
    options = make_parser().parse_args(words)
    options.words = list(words)
    options.command(options)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `options.command(options)` runs the one that was chosen."""
    parser = argparse.ArgumentParser(
        prog="awtpn",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print the version and exit")
    parser.set_defaults(command=lambda options: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")
    add_init(commands)
    add_pack(commands)
    add_extract(commands)
    add_shards(commands)
    add_predict(commands)
    add_report(commands)
    add_export(commands)
    add_push(commands)
    add_compare(commands)
    add_doctor(commands)
    add_bench(commands)
    return parser
