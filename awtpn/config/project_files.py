"""The folders `configs` and `launch`, which hold files of this project that are not modules of it.

A wheel has them in `awtpn/share` (setup.py puts them there); in a checkout they are beside the packages.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from shards.storage.local_path import local_path

PACKAGE = Path(str(files("awtpn")))
IN_WHEEL = PACKAGE / "share"
ROOT = IN_WHEEL if IN_WHEEL.is_dir() else PACKAGE.parent
"""The parent of both folders."""

DEMO_CONFIG = ROOT / "configs" / "demo.yaml"
VARIANTS_FILE = ROOT / "configs" / "ablations.yaml"
SUITE_FILE = ROOT / "configs" / "comparison" / "suite.yaml"
TRAIN_SCRIPT = ROOT / "launch" / "train.py"

# What an option takes, and which packaged files have a name that it takes, too.
NAMED = {
    "--config": ("a YAML file", "*.yaml"),
    "--deepspeed": ("a JSON file", "deepspeed/*.json"),
    "--variants": ("a YAML file", VARIANTS_FILE.name),
    "--suite": ("a YAML file", "comparison/*.yaml"),
}


def checkout() -> Path | None:
    """The checkout that this package belongs to; None if it was installed from a wheel."""
    return None if ROOT == IN_WHEEL else ROOT


def shared_files() -> dict[str, Path]:
    """Every file of both folders, by its path within the project: {"configs/demo.yaml": ..., ...}."""
    found = [file for name in ("configs", "launch") for file in sorted((ROOT / name).rglob("*"))]
    return {
        file.relative_to(ROOT).as_posix(): file
        for file in found
        if file.is_file() and file.name != "__init__.py" and file.suffix != ".pyc"
    }


def packaged_files(option: str) -> dict[str, Path]:
    """The packaged files that `option` takes by name: {"meld": .../configs/meld.yaml, ...}."""
    found = sorted((ROOT / "configs").glob(NAMED[option][1]), key=lambda file: file.stem)
    return {file.stem: file for file in found if option == "--variants" or file != VARIANTS_FILE}


def find_file(text: str | Path, option: str) -> Path:
    """The file that a user names by its path, or by the name of a packaged file; an existing path wins.

    Args:
        text: what the user wrote.
        option: whose value it is, one of `NAMED`.

    Raises:
        ValueError: there is no such file; suggests one.
    """
    path, packaged = local_path(text, option), packaged_files(option)
    if path.is_file():
        return path
    if str(text) in packaged:
        return packaged[str(text)]
    what = "a folder" if path.is_dir() else "no such file"
    raise ValueError(f"{text}: {what}; {suggest(path, option, packaged)}")


def suggest(path: Path, option: str, packaged: dict[str, Path]) -> str:
    """What to give in place of a path that is no file: one beside it, a packaged one, or what there is."""
    kind, _ = NAMED[option]
    if path.stem in packaged:
        return f"did you mean {option} {path.stem}, which comes with awtpn? (`awtpn init` copies such files)"
    beside = [file.name for file in path.parent.glob("*") if path.suffix and file.suffix == path.suffix]
    if alike := get_close_matches(path.name, beside, 1):
        return f"did you mean {option} {path.with_name(alike[0])}?"
    if alike := get_close_matches(path.stem, packaged):
        return f"did you mean {option} {' or '.join(sorted(alike))}?"
    return f"{option} takes {kind}, or the name of one that comes with awtpn: {', '.join(packaged)}"
