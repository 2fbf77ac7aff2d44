"""`awtpn init`: copies of the configurations and of the scripts that launchers start, to use and to edit."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote
from typing import Any

from awtpn.config.option_types import path_argument
from shards.safe_io.printable import plural

HELP = """Copy `configs` and `launch` into a folder: the configurations, and the scripts that launchers start.
Then the commands of the README work in that folder, and you can edit the files. Nothing is overwritten.
"""
MOST_NAMED = 3


def add_init(commands: Any) -> None:
    parser = commands.add_parser(
        "init", help="copy the configurations and launch scripts into a folder", description=HELP
    )
    parser.add_argument(
        "dir",
        metavar="DIR",
        nargs="?",
        type=path_argument,
        default=Path(),
        help="the folder, which may exist (default: the current folder)",
    )
    parser.set_defaults(command=run_init)


def run_init(options: argparse.Namespace) -> None:
    written = copy_project_files(options.dir)
    where = f"{options.dir / 'configs'} and {options.dir / 'launch'}"
    print(f"wrote {plural(len(written), 'file')} to {where}" if written else f"{where} are complete already")
    enter = "" if options.dir.resolve() == Path.cwd() else f"cd {quote(str(options.dir))} && "
    print(f"next: {enter}awtpn train")


def copy_project_files(folder: Path) -> list[Path]:
    """Copy both folders into `folder`; returns the files written, which are those that were not there.

    Raises:
        ValueError: something else is in the place of a file, or the file there differs; nothing is written.
        OSError: a file cannot be written.
    """
    from awtpn.config.project_files import shared_files
    from awtpn.run.atomic_write import write_atomically

    contents = {folder / name: file.read_bytes() for name, file in shared_files().items()}
    if differing := [path for path, content in contents.items() if not is_free(path, folder, content)]:
        named = ", ".join(map(str, differing[:MOST_NAMED]))
        more = f" and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
        raise ValueError(
            f"nothing is copied, since other files are in the place of {named}{more}: rename them, or name "
            "another folder, as in `awtpn init DIR`"
        )
    missing = [path for path in contents if not path.exists()]
    for path in missing:
        write_atomically(path, contents[path])
    return missing


def is_free(path: Path, folder: Path, content: bytes) -> bool:
    """Whether a file with this content is at `path`, or can be put there."""
    parents = [folder, *(folder / part for part in path.relative_to(folder).parents)]
    if any(parent.exists() and not parent.is_dir() for parent in parents):
        return False
    return path.read_bytes() == content if path.is_file() else not path.exists() and not path.is_symlink()
