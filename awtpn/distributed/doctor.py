"""Find the usual causes of a bad night before it begins.

Each rank states facts about itself; one pure function reads all ranks' facts and says what is wrong and what
to do. Every run does so at its start; `awtpn doctor` does it on its own, alone or under a launcher.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import secrets
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from awtpn.distributed.accelerate_launch import check_environment
from awtpn.distributed.world import World, init_process_group, shutdown
from awtpn.model import matrix_products
from shards.format.schema import dump_manifest
from shards.safe_io.printable import printable_lines
from shards.safe_io.versions import installed_version
from shards.storage.credentials import redact_url
from shards.storage.store import open_dataset

PACKAGES = ("awtpn-at-scale", "torch", "accelerate", "deepspeed", "numpy", "webdataset", "fsspec")
TOKEN_FILE = ".token"  # what rank 0 writes there, other ranks must find
CLOCK_SKEW_S = 30.0
# How long a file written on one host may take to be seen on another: NFS looks again after some seconds.
RETRY_BUDGET_S = 10.0
# Room for a few checkpoints of a model of the published size, and its logs.
LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that is or may be wrong; an error stops a run."""

    level: Literal["error", "warning"]
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.level}: {self.what}\n  fix: {self.fix}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that ranks must share."""
    packages = {name: installed_version(name) or "missing" for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "cuda": torch.version.cuda or "none"}


def collect_host_info(
    rank: int,
    run_dir: Path | None = None,
    token: str | None = None,
    unwritable: str | None = None,
    urls: Sequence[str] = (),
    cache_dir: str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What one rank can say of itself; plain values.

    Args:
        rank: of this process.
        run_dir: run folder to look at.
        token: what rank 0 has written into `run_dir`'s token file.
        unwritable: why rank 0 could not.
        urls: packed datasets that must be within reach.
        cache_dir, storage_options: for them.
    """
    return {
        "rank": rank,
        "host": platform.node(),
        "address": _address(),
        "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
        "time": time.time(),
        "versions": versions(),
        "run_dir": None if run_dir is None else _look_at(run_dir, token, unwritable),
        "data": {url: _reach(url, cache_dir, storage_options) for url in urls},
        "hostfile": missing_hostfile(),
    }


def _address() -> str:
    """The address that this host's name means to itself, which gloo and NCCL may announce to others."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "unknown"


def _look_at(run_dir: Path, token: str | None, unwritable: str | None) -> dict[str, Any]:
    there = next(folder for folder in (run_dir, *run_dir.resolve().parents) if folder.exists())
    return {
        "path": str(run_dir.resolve()),
        "shared": token is None or unwritable is not None or _appears(run_dir / TOKEN_FILE, token),
        "unwritable": unwritable,
        "free_bytes": shutil.disk_usage(there).free,
    }


def _appears(file: Path, text: str) -> bool:
    """`file` holds `text`, or soon will."""
    deadline = time.monotonic() + RETRY_BUDGET_S
    while True:
        with contextlib.suppress(OSError):
            if file.read_text() == text:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _reach(url: str, cache_dir: str | None, storage_options: dict[str, Any] | None) -> str:
    """The manifest's digest, or why the dataset cannot be read."""
    try:
        manifest = open_dataset(url, cache_dir, storage_options)[1]
    except (OSError, ValueError) as error:
        return str(error)
    digest = hashlib.sha256(dump_manifest(manifest).encode()).hexdigest()
    return f"ok, manifest {digest[:12]}"


def missing_hostfile() -> str | None:
    """The hostfile that a `deepspeed` above this process was given, if there is no such file.

    DeepSpeed only warns then, and trains on this machine alone. Reads the command lines of the processes
    above this one (Linux); None where there is nothing to complain of.
    """
    pid = os.getppid()
    for _ in range(5):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return None
        if not any(word.endswith("deepspeed") for word in words):
            continue
        if file := _hostfile(words):
            return None if Path(file).is_file() else file
    return None


def _hostfile(words: Sequence[str]) -> str | None:
    """The hostfile that a command line of `deepspeed` names."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in ("--hostfile", "-H"):
            return value or following or None
    return None


def diagnose(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    """What is wrong, from every rank's `facts` in rank order; errors first."""
    findings = [
        *_versions_differ(ranks),
        *_run_dirs(ranks),
        *_data(ranks),
        *_clocks(ranks),
        *_addresses(ranks),
        *_hostfiles(ranks),
    ]
    return sorted(findings, key=lambda finding: finding.level)


def _versions_differ(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    findings = []
    for name in ranks[0]["versions"]:
        found = {r["host"]: r["versions"].get(name) for r in ranks}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{host}: {v}" for host, v in found.items())
            findings.append(
                Finding("error", f"hosts have different versions of {name} ({listed})", "install one on all")
            )
    return findings


def _run_dirs(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    findings = []
    for r in ranks:
        folder = r["run_dir"]
        if folder is None:
            continue
        where = f"rank {r['rank']} on {r['host']}"
        if not folder["shared"]:
            findings.append(
                Finding(
                    "error",
                    f"{where} does not see rank 0's run folder at {folder['path']}",
                    "put run.dir on a file system that all hosts share",
                )
            )
        if r["rank"] == 0 and folder["unwritable"]:
            what = f"{where} cannot write to {folder['path']}: {folder['unwritable']}"
            findings.append(Finding("error", what, "choose another run.dir"))
        if r["rank"] == 0 and folder["free_bytes"] < LEAST_FREE_BYTES:
            free = folder["free_bytes"] / 2**30
            findings.append(
                Finding(
                    "warning", f"{free:.2f} GiB are free at {folder['path']}", "free some, or lower keep_last"
                )
            )
    return findings


def _data(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    findings = []
    for url in ranks[0]["data"]:
        shown = redact_url(url)
        for r in ranks:
            answer = r["data"].get(url, "not asked")
            if not answer.startswith("ok"):
                findings.append(
                    Finding(
                        "error",
                        f"rank {r['rank']} on {r['host']} cannot read {shown}: {answer}",
                        "check the URL, the network and the credentials on that host"
                        if "://" in url
                        else "check the path: every host needs the dataset there",
                    )
                )
        answers = {r["data"].get(url) for r in ranks}
        if len(answers) > 1 and all(str(a).startswith("ok") for a in answers):
            listed = ", ".join(f"rank {r['rank']}: {r['data'].get(url)}" for r in ranks)
            findings.append(
                Finding(
                    "error",
                    f"ranks read different datasets at {shown} ({listed})",
                    "give all hosts the same copy",
                )
            )
    return findings


def _clocks(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    early, late = min(ranks, key=lambda r: r["time"]), max(ranks, key=lambda r: r["time"])
    skew = late["time"] - early["time"]
    if skew <= CLOCK_SKEW_S:
        return []
    what = f"the clock of {late['host']} is {skew:.0f} s ahead of that of {early['host']}"
    return [
        Finding("warning", what, "run an NTP client on both; object stores refuse requests of wrong date")
    ]


def _addresses(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    if len({r["host"] for r in ranks}) == 1:
        return []
    return [
        _unreachable("warning", r["host"], r["address"])
        for r in {r["host"]: r for r in ranks}.values()
        if r["address"].startswith("127.") and not r["interface"]
    ]


def _unreachable(level: Literal["error", "warning"], host: str, address: str) -> Finding:
    return Finding(
        level,
        f"{host} knows itself as {address}, which other hosts cannot reach",
        "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that joins the hosts, e.g. eth0",
    )


def _hostfiles(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    return [
        Finding(
            "error",
            f"deepspeed was given the hostfile {r['hostfile']}, which does not exist",
            "name one that does",
        )
        for r in ranks[:1]
        if r["hostfile"]
    ]


def check_network() -> None:
    """Refuse what would keep this rank from meeting those on other hosts: afterwards none could say why.

    Raises:
        ValueError: names this host and the fix.
    """
    check_environment()
    if "WORLD_SIZE" not in os.environ and (tasks := _int_variable("SLURM_STEP_NUM_TASKS")) > 1:
        raise ValueError(
            f"srun started {tasks} processes, but none of them knows of the others, and each would train "
            "alone: let it start one torchrun on each node (see launch/slurm.sbatch), or unset "
            "SLURM_STEP_NUM_TASKS for runs of their own"
        )
    host, address = platform.node(), _address()
    if _spans_hosts() and address.startswith("127.") and not os.environ.get("GLOO_SOCKET_IFNAME"):
        finding = _unreachable("error", host, address)
        raise ValueError(f"the ranks cannot meet: {finding.what}; fix: {finding.fix}")


def _spans_hosts() -> bool:
    """A launcher started ranks on other hosts too; an allocation of several nodes alone starts nothing."""
    ranks = _int_variable("WORLD_SIZE")
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):  # torchrun and accelerate; deepspeed
        if name in os.environ:
            return _int_variable(name) < ranks
    return ranks > 1 and max(_int_variable("SLURM_STEP_NUM_NODES"), _int_variable("SLURM_NNODES")) > 1


def _int_variable(name: str) -> int:
    """A count in the environment; 1 where there is none."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 1


def check_cluster(
    world: World,
    run_dir: Path | None,
    urls: Sequence[str],
    cache_dir: str | None = None,
    storage_options: dict[str, Any] | None = None,
    *,
    keep_folder: bool = True,
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Every rank's facts, and what is wrong with them; all ranks call, and all get the same.

    A run folder that did not exist stays only with `keep_folder`, and only if nothing is wrong.
    """
    token = unwritable = None
    if run_dir is not None:
        made = _missing_folders(run_dir) if world.is_main else []
        token, unwritable = world.broadcast_object(_leave_token(run_dir) if world.is_main else None)
    ranks = world.all_gather_object(
        collect_host_info(world.rank, run_dir, token, unwritable, urls, cache_dir, storage_options)
    )
    if run_dir is not None and world.is_main:
        with contextlib.suppress(OSError):
            (run_dir / TOKEN_FILE).unlink()
    findings = diagnose(ranks)
    if run_dir is not None and not (keep_folder and all(found.level != "error" for found in findings)):
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return ranks, findings


def _missing_folders(run_dir: Path) -> list[Path]:
    """The run folder and those above it, as far as they do not exist; the innermost first."""
    try:
        return [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    except OSError:
        return []


def _leave_token(run_dir: Path) -> tuple[str, str | None]:
    """Leave a mark in the run folder, made where it is missing: the mark, and why that was impossible."""
    token = secrets.token_hex(8)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / TOKEN_FILE).write_text(token)
    except OSError as error:
        return token, str(error)
    return token, None


def doctor_main(run_dir: Path | None, urls: Sequence[str], storage_options: dict[str, Any] | None) -> bool:
    """What `awtpn doctor` does: print what this machine or these ranks are, and what is wrong with them.

    Returns:
        False if a run could not work here.
    """
    check_network()
    world = init_process_group()
    ranks, findings = check_cluster(world, run_dir, urls, storage_options=storage_options, keep_folder=False)
    products = world.all_gather_object(matrix_products.largest_difference())
    if world.is_main:
        print(f"{world.size} ranks on {len({r['host'] for r in ranks})} hosts, device {world.device}")
        print("versions: " + ", ".join(f"{name} {v}" for name, v in ranks[0]["versions"].items()))
        print(matrix_products.describe(max(products)))
        print(printable_lines("\n".join(str(f) for f in findings)) if findings else "nothing wrong found")
    shutdown()
    return all(f.level != "error" for f in findings)
