"""Find problems of the hosts, the network and the data before a run starts.

Each rank collects information about its host (`collect_host_info`); one pure function (`diagnose`) compares
all ranks' information and returns what is wrong and how to fix it. Every run does this at its start;
`awtpn doctor` does it without a run, alone or under a launcher.
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
from awtpn.model.compute import matrix_products
from shards.format.schema import dump_manifest
from shards.safe_io.printable import plural, printable_lines
from shards.safe_io.versions import installed_version
from shards.storage.credentials import redact_url
from shards.storage.store import open_dataset

PACKAGES = (
    *("awtpn-at-scale", "torch", "accelerate", "deepspeed", "numpy", "webdataset", "fsspec"),
    *("transformers", "peft"),
)
TOKEN_FILE = ".token"  # written by rank 0 into the run folder; the other ranks must be able to read it
CLOCK_SKEW_S = 30.0
# A file written on one host may appear on another only after some seconds: NFS caches attributes.
TOKEN_TIMEOUT_S = 10.0
# Space for a few checkpoints of a model of the published size, and its logs.
LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """A problem and its fix. An error stops a run, a warning does not."""

    level: Literal["error", "warning"]
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.level}: {self.what}\n  fix: {self.fix}"


def versions() -> dict[str, str]:
    """Versions of Python, CUDA and the packages that must be the same on all ranks."""
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
    """Information about one rank and its host, as plain values that can be sent to other ranks.

    Args:
        rank: of this process.
        run_dir: run folder to check.
        token: content of the token file that rank 0 wrote into `run_dir`.
        unwritable: why rank 0 could not write it; None if it could.
        urls: packed datasets that every rank must be able to read.
        cache_dir, storage_options: for them.
    """
    return {
        "rank": rank,
        "host": platform.node(),
        "address": _address(),
        "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
        "time": time.time(),
        "versions": versions(),
        "run_dir": None if run_dir is None else _run_dir_info(run_dir, token, unwritable),
        "data": {url: _dataset_info(url, cache_dir, storage_options) for url in urls},
        "hostfile": missing_hostfile(),
    }


def _address() -> str:
    """The address that this host's name resolves to here; gloo and NCCL may announce it to other hosts."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "unknown"


def _run_dir_info(run_dir: Path, token: str | None, unwritable: str | None) -> dict[str, Any]:
    existing = next(folder for folder in (run_dir, *run_dir.resolve().parents) if folder.exists())
    return {
        "path": str(run_dir.resolve()),
        "shared": token is None or unwritable is not None or _wait_for_text(run_dir / TOKEN_FILE, token),
        "unwritable": unwritable,
        "free_bytes": shutil.disk_usage(existing).free,
    }


def _wait_for_text(file: Path, text: str) -> bool:
    """Whether `file` contains `text` within TOKEN_TIMEOUT_S."""
    deadline = time.monotonic() + TOKEN_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            if file.read_text() == text:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


def _dataset_info(url: str, cache_dir: str | None, storage_options: dict[str, Any] | None) -> str:
    """ "ok" and the manifest's digest, or why the dataset cannot be read."""
    try:
        manifest = open_dataset(url, cache_dir, storage_options)[1]
    except (OSError, ValueError) as error:
        return str(error)
    digest = hashlib.sha256(dump_manifest(manifest).encode()).hexdigest()
    return f"ok, manifest {digest[:12]}"


def missing_hostfile(parent: int | None = None) -> str | None:
    """The hostfile of the `deepspeed` launcher above this process, if that file does not exist; else None.

    DeepSpeed only warns then, and trains on this machine alone. Reads the command lines of the parent
    processes (Linux), from the process `parent` on; default: this process's parent.
    """
    pid = parent or os.getppid()
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
    """The hostfile in a command line of `deepspeed`."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in ("--hostfile", "-H"):
            return value or following or None
    return None


def diagnose(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    """All problems, from every rank's `collect_host_info` in rank order; errors first."""
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
                Finding(
                    "error",
                    f"hosts have different versions of {name} ({listed})",
                    "install the same version on all hosts",
                )
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
                    "warning",
                    f"only {free:.2f} GiB are free at {folder['path']}",
                    "delete files there, or lower train.keep_last",
                )
            )
    return findings


def _data(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    findings = []
    for url in ranks[0]["data"]:
        shown = redact_url(url)
        failed: dict[tuple[str, str], list[int]] = {}
        for r in ranks:
            info = r["data"].get(url, "not checked")
            if not info.startswith("ok"):
                failed.setdefault((r["host"], info), []).append(r["rank"])
        for (host, info), numbers in failed.items():
            who = f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {', '.join(map(str, numbers))}"
            findings.append(
                Finding(
                    "error",
                    f"{who} on {host} cannot read {shown}: {info}",
                    "check the URL, the network and the credentials on that host"
                    if "://" in url
                    else "check the path"
                    + (": every host needs the dataset at this path" if len(ranks) > 1 else ""),
                )
            )
        infos = {r["data"].get(url) for r in ranks}
        if len(infos) > 1 and all(str(info).startswith("ok") for info in infos):
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
        Finding("warning", what, "run an NTP client on both; object stores refuse requests with a wrong date")
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
        f"the name {host} resolves to {address} on that host, which other hosts cannot reach",
        "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that connects the hosts, e.g. eth0",
    )


def _hostfiles(ranks: Sequence[dict[str, Any]]) -> list[Finding]:
    return [
        Finding(
            "error",
            f"deepspeed was given the hostfile {r['hostfile']}, which does not exist",
            "give the path of an existing file",
        )
        for r in ranks[:1]
        if r["hostfile"]
    ]


def check_network() -> None:
    """Check what would keep this rank from connecting to ranks on other hosts.

    Runs before the process group exists: once a rank waits for a connection, it can report nothing.

    Raises:
        ValueError: names this host and the fix.
    """
    check_environment()
    if "WORLD_SIZE" not in os.environ and (tasks := _int_variable("SLURM_STEP_NUM_TASKS")) > 1:
        raise ValueError(
            f"srun started {tasks} processes without a launcher, and each would train alone: let srun start "
            "one torchrun on each node (see launch/slurm.sbatch), or unset SLURM_STEP_NUM_TASKS to start "
            "independent runs"
        )
    host, address = platform.node(), _address()
    if _spans_hosts() and address.startswith("127.") and not os.environ.get("GLOO_SOCKET_IFNAME"):
        finding = _unreachable("error", host, address)
        raise ValueError(f"the ranks cannot connect: {finding.what}; fix: {finding.fix}")


def _spans_hosts() -> bool:
    """Whether a launcher started ranks on other hosts too; a Slurm allocation of several nodes does not."""
    ranks = _int_variable("WORLD_SIZE")
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):  # torchrun and accelerate; deepspeed
        if name in os.environ:
            return _int_variable(name) < ranks
    return ranks > 1 and max(_int_variable("SLURM_STEP_NUM_NODES"), _int_variable("SLURM_NNODES")) > 1


def _int_variable(name: str) -> int:
    """A count from the environment; 1 if it is not set."""
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
    """Collect every rank's information and diagnose it. Collective: all ranks call it, all get the same.

    Creates the run folder; removes it again if there is an error, or without `keep_folder`.
    """
    token = unwritable = None
    if run_dir is not None:
        created = _missing_folders(run_dir) if world.is_main else []
        token, unwritable = world.broadcast_object(_write_token(run_dir) if world.is_main else None)
    ranks = world.all_gather_object(
        collect_host_info(world.rank, run_dir, token, unwritable, urls, cache_dir, storage_options)
    )
    if run_dir is not None and world.is_main:
        with contextlib.suppress(OSError):
            (run_dir / TOKEN_FILE).unlink()
    findings = diagnose(ranks)
    if run_dir is not None and not (keep_folder and all(found.level != "error" for found in findings)):
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return ranks, findings


def _missing_folders(run_dir: Path) -> list[Path]:
    """The run folder and its parents that do not exist, the innermost first."""
    try:
        return [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    except OSError:
        return []


def _write_token(run_dir: Path) -> tuple[str, str | None]:
    """Create the run folder and write a random token into it: the token, and the error if that failed."""
    token = secrets.token_hex(8)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / TOKEN_FILE).write_text(token)
    except OSError as error:
        return token, str(error)
    return token, None


def doctor_main(run_dir: Path | None, urls: Sequence[str], storage_options: dict[str, Any] | None) -> bool:
    """The command `awtpn doctor`: print ranks, versions, bit-exactness of products, and all problems.

    Returns:
        False if there is an error, which would stop a run.
    """
    check_network()
    world = init_process_group()
    ranks, findings = check_cluster(world, run_dir, urls, storage_options=storage_options, keep_folder=False)
    products = world.all_gather_object(matrix_products.largest_difference())
    if world.is_main:
        hosts = plural(len({r["host"] for r in ranks}), "host")
        print(f"{plural(world.size, 'rank')} on {hosts}, device {world.device}")
        print("versions: " + ", ".join(f"{name} {v}" for name, v in ranks[0]["versions"].items()))
        print(matrix_products.describe(max(products)))
        print(printable_lines("\n".join(str(f) for f in findings)) if findings else "no problems found")
    shutdown()
    return all(f.level != "error" for f in findings)
