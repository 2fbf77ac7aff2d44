"""Two hosts on one machine: a laboratory for launchers, networks and what breaks them.

Each host has a name, a network, processes, mounts and shared memory of its own (Linux namespaces), an sshd
that is its first process, and a cable `eth0` to a switch in a third network. Like a freshly installed Debian,
each believes its own name to be 127.0.1.1: what announces itself by that name cannot be reached.

The disk is common, as on a cluster, until a host hides a folder of it. Nothing outlives the block, not even
one that is killed: the first processes die with the process that made the laboratory, everything on a host
dies with its first process, and networks and mounts vanish with the last process in them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from support import LIMIT, REPO

NAMES = ("host-1", "host-2")
SSH_PORT = 2222
NEEDED = {"ip": "iproute2", "sshd": "openssh-server", "ssh-keygen": "openssh-client", "pdsh": "pdsh"}
ALL_BUT_PROCESSES = ("--net", "--uts", "--ipc", "--mount")
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")

SSHD_CONFIG = f"""\
Port {SSH_PORT}
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/user_key.pub
StrictModes no
PasswordAuthentication no
PidFile none
"""
SSH_CONFIG = f"""\
Port {SSH_PORT}
User root
IdentityFile /etc/ssh/user_key
IdentitiesOnly yes
StrictHostKeyChecking yes
GlobalKnownHostsFile /etc/ssh/known_hosts
"""

# What a host does before it is one: arguments are its name, its /etc/hosts and its /etc/ssh.
BOOT = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mount --bind "$3" /etc/ssh
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
exec "$(command -v sshd)" -D -e
"""


@dataclass(frozen=True)
class Host:
    """One of the two; `command` makes anything run on it."""

    name: str
    address: str
    first_process: int

    def command(self, words: Sequence[object]) -> list[str]:
        """The command that runs `words` on this host, in the repository root."""
        enter = ["nsenter", f"--target={self.first_process}", *ALL_BUT_PROCESSES, "--pid", f"--wd={REPO}"]
        return [*enter, *map(str, words)]

    def do(self, *words: object) -> None:
        """Run a small command on this host; it must succeed."""
        _do(*self.command(words))

    def unplug(self) -> None:
        """From now on the host is as good as dead to the others; its processes notice nothing."""
        self.do("ip", "link", "set", "eth0", "down")

    def hide(self, folder: Path) -> None:
        """An empty disk of its own, where the other host has `folder`."""
        self.do("mount", "-t", "tmpfs", "tmpfs", folder)


def why_not() -> str | None:
    """Why this machine cannot be a laboratory, and what would help; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need Linux and root"
    if missing := [package for tool, package in NEEDED.items() if shutil.which(tool, path=_path()) is None]:
        return "apt-get install -y " + " ".join(missing)
    probe = subprocess.run(
        [
            "unshare",
            *ALL_BUT_PROCESSES,
            "--pid",
            "--fork",
            "--mount-proc",
            "ip",
            "link",
            "add",
            "type",
            "veth",
        ],
        capture_output=True,
        text=True,
    )
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else None


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Build the laboratory; its keys and configurations go into `folder`."""
    _write_etc(folder)
    with contextlib.ExitStack() as stack:
        switch = _start(stack, ["unshare", "--net", "sleep", "infinity"], folder / "switch.log")
        _wait(lambda: os.readlink(f"/proc/{switch}/ns/net") != os.readlink("/proc/self/ns/net"), "the switch")
        on_switch = ("nsenter", f"--target={switch}", "--net", "ip", "link")
        _do(*on_switch, "add", "switch", "type", "bridge")
        _do(*on_switch, "set", "switch", "up")
        hosts = []
        for i, name in enumerate(NAMES, start=1):
            host = Host(name, f"10.0.0.{i}", _boot(stack, folder / name))
            port = f"port-{i}"
            _do(*on_switch, "add", port, "type", "veth", "peer", "eth0", "netns", str(host.first_process))
            _do(*on_switch, "set", port, "master", "switch", "up")
            host.do("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
            host.do("ip", "link", "set", "eth0", "up")
            hosts.append(host)
        yield hosts[0], hosts[1]


def _write_etc(folder: Path) -> None:
    """What the hosts have in /etc: names and addresses, and ssh from each to each without a password."""
    known = ""
    folder.mkdir(parents=True, exist_ok=True)
    _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "user_key"))
    for i, name in enumerate(NAMES, start=1):
        ssh = folder / name / "ssh"
        ssh.mkdir(parents=True)
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "host_key"))
        known += f"[{name}]:{SSH_PORT} {(ssh / 'host_key.pub').read_text()}"
        others = [f"10.0.0.{j} {other}\n" for j, other in enumerate(NAMES, start=1) if j != i]
        (folder / name / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n" + "".join(others))
    for name in NAMES:
        ssh = folder / name / "ssh"
        for key in ("user_key", "user_key.pub"):
            shutil.copy(folder / key, ssh)
        (ssh / "known_hosts").write_text(known)
        (ssh / "sshd_config").write_text(SSHD_CONFIG)
        (ssh / "ssh_config").write_text(SSH_CONFIG)


def _boot(stack: contextlib.ExitStack, folder: Path) -> int:
    """Start a host; its first process, which is its sshd, as seen from outside."""
    boot = ["bash", "-c", BOOT, "boot", folder.name, str(folder / "hosts"), str(folder / "ssh")]
    new = ["unshare", *ALL_BUT_PROCESSES, "--pid", "--fork", "--kill-child", "--mount-proc"]
    log = folder / "boot.log"
    parent = _start(stack, [*new, *boot], log)
    _wait(lambda: "listening" in log.read_text(), f"{folder.name}'s sshd, see {log}")
    return psutil.Process(parent).children()[0].pid


def _start(stack: contextlib.ExitStack, command: Sequence[str], log: Path) -> int:
    with log.open("w") as file:
        process = subprocess.Popen(
            [*DIES_WITH_US, *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PATH": _path()},
        )
    stack.callback(process.wait)
    stack.callback(process.kill)
    return process.pid


def _wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not ready():
        assert time.monotonic() < deadline, f"no sign of {what} after {LIMIT:.0f} s"
        time.sleep(0.02)


def _do(*words: str) -> None:
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=LIMIT, env=os.environ | {"PATH": _path()}
    )
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"


def _path() -> str:
    """sshd and ip live where only root looks."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
