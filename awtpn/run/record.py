"""Read and check the records of a run folder: settings in `config.yaml`, state in `status.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from awtpn.config.schema import in_todays_form
from shards.safe_io.bounded_json import read_json
from shards.safe_io.bounded_yaml import parse_yaml

CONFIG_FILE = "config.yaml"
STATUS_FILE = "status.json"


def read_settings(run_dir: Path) -> dict[str, Any] | None:
    """The sections in config.yaml of a run folder; None where there is no such file.

    Raises:
        ValueError: the file does not hold the settings of a run; it must not be replaced.
    """
    recorded = read_as_recorded(run_dir)
    return None if recorded is None else in_todays_form(recorded)


def read_as_recorded(run_dir: Path) -> dict[str, Any] | None:
    """The same as it is in the file, also of an earlier version: keys may be missing."""
    file = run_dir / CONFIG_FILE
    if not file.is_file():
        return None
    try:
        recorded = parse_yaml(file.read_text())
    except (yaml.YAMLError, ValueError, RecursionError):
        recorded = None
    if not isinstance(recorded, dict) or not all(isinstance(section, dict) for section in recorded.values()):
        raise ValueError(
            f"{file} is not the record of a run's settings: remove it, or choose another run.dir"
        )
    return recorded


def read_section(run_dir: Path, name: str) -> dict[str, Any]:
    """One section of a run's settings, such as "data".

    Raises:
        ValueError: there is no such file or section.
    """
    section = (read_settings(run_dir) or {}).get(name)
    if section is None:
        raise ValueError(f"{run_dir / CONFIG_FILE} is not the record of a run: it has no settings of {name}")
    found: dict[str, Any] = section
    return found


def read_status(run_dir: Path) -> dict[str, Any]:
    """The content of status.json of a run folder; it has a `status`.

    Raises:
        ValueError: it is not the status of a run.
        OSError: it cannot be read.
    """
    file = run_dir / STATUS_FILE
    record = read_json(file)
    if not isinstance(record, dict) or not isinstance(record.get("status"), str):
        raise ValueError(f"{file} does not tell the status of a run: start the run again, which writes it")
    return record
