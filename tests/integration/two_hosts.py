"""Two or more hosts on one machine: a laboratory for launchers, networks and what breaks them.

Each host has a name, a network, processes, mounts and shared memory of its own (Linux namespaces), a first
process (an sshd, or one that sleeps), and a cable `eth0` to a switch in a third network. Like a freshly
installed Debian, each believes its own name to be 127.0.1.1: what announces itself by that name cannot be
reached.

The disk is common, as on a cluster, until a host hides a folder of it. Nothing outlives the block, not even
one that is killed: the first processes die with the process that made the laboratory, everything on a host
dies with its first process, and networks and mounts vanish with the last process in them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
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
SWITCH = "10.0.0.254"
NEEDED = {"ip": "iproute2"}
NEEDED_BY_SSH = {"sshd": "openssh-server", "ssh-keygen": "openssh-client", "pdsh": "pdsh"}
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

# What a host does before it is one: arguments are its name, its /etc/hosts, and its /etc/ssh or nothing.
BOOT = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
ip link set lo up
if [ -z "$3" ]; then
    echo "listening to nobody"
    exec sleep infinity
fi
mount --bind "$3" /etc/ssh
mkdir /run/sshd
exec "$(command -v sshd)" -D -e
"""


@dataclass(frozen=True)
class Host:
    """One of the hosts, or the switch; `command` makes anything run on it."""

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

    def die(self) -> None:
        """Nothing on the host lives on, and no packet tells the others."""
        self.unplug()
        os.kill(self.first_process, signal.SIGKILL)

    @contextlib.contextmanager
    def network(self) -> Iterator[None]:
        """Sockets that this thread makes in the block are on the host."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/self/ns/net") as ours, open(f"/proc/{self.first_process}/ns/net") as theirs:
            assert libc.setns(theirs.fileno(), 0) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(ours.fileno(), 0) == 0, os.strerror(ctypes.get_errno())

    def hide(self, folder: Path) -> None:
        """An empty disk of its own, where the other host has `folder`."""
        self.do("mount", "-t", "tmpfs", "tmpfs", folder)


def why_not(ssh: bool = True) -> str | None:
    """Why this machine cannot be a laboratory, with or without ssh, and what would help; None if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need Linux and root"
    needed = NEEDED | (NEEDED_BY_SSH if ssh else {})
    if missing := [package for tool, package in needed.items() if shutil.which(tool, path=_path()) is None]:
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
    with build_hosts(folder, NAMES, ssh=True) as (one, other, _):
        yield one, other


@contextlib.contextmanager
def build_hosts(folder: Path, names: Sequence[str], ssh: bool) -> Iterator[list[Host]]:
    """Build hosts of these names, with configurations in `folder`; the last one is the switch.

    The switch has an address, 10.0.0.254, at which servers can be that all hosts reach.
    """
    _write_etc(folder, names, ssh)
    with contextlib.ExitStack() as stack:
        switch = _start(stack, ["unshare", "--net", "sleep", "infinity"], folder / "switch.log")
        _wait(lambda: os.readlink(f"/proc/{switch}/ns/net") != os.readlink("/proc/self/ns/net"), "the switch")
        on_switch = ("nsenter", f"--target={switch}", "--net", "ip", "link")
        _do(*on_switch, "add", "switch", "type", "bridge")
        _do(*on_switch, "set", "switch", "up")
        _do(*on_switch, "set", "lo", "up")
        _do(*on_switch[:-1], "address", "add", f"{SWITCH}/24", "dev", "switch")
        hosts = []
        for i, name in enumerate(names, start=1):
            host = Host(name, f"10.0.0.{i}", _boot(stack, folder / name, ssh))
            port = f"port-{i}"
            _do(*on_switch, "add", port, "type", "veth", "peer", "eth0", "netns", str(host.first_process))
            _do(*on_switch, "set", port, "master", "switch", "up")
            host.do("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
            host.do("ip", "link", "set", "eth0", "up")
            hosts.append(host)
        yield [*hosts, Host("switch", SWITCH, switch)]


def _write_etc(folder: Path, names: Sequence[str], ssh: bool) -> None:
    """What the hosts have in /etc: names and addresses, and ssh from each to each without a password."""
    for i, name in enumerate(names, start=1):
        (folder / name).mkdir(parents=True)
        others = [f"10.0.0.{j} {other}\n" for j, other in enumerate(names, start=1) if j != i]
        (folder / name / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n" + "".join(others))
    if ssh:
        _write_keys(folder, names)


def _write_keys(folder: Path, names: Sequence[str]) -> None:
    known = ""
    _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "user_key"))
    for name in names:
        ssh = folder / name / "ssh"
        ssh.mkdir()
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / "host_key"))
        known += f"[{name}]:{SSH_PORT} {(ssh / 'host_key.pub').read_text()}"
    for name in names:
        ssh = folder / name / "ssh"
        for key in ("user_key", "user_key.pub"):
            shutil.copy(folder / key, ssh)
        (ssh / "known_hosts").write_text(known)
        (ssh / "sshd_config").write_text(SSHD_CONFIG)
        (ssh / "ssh_config").write_text(SSH_CONFIG)


def _boot(stack: contextlib.ExitStack, folder: Path, ssh: bool) -> int:
    """Start a host; its first process as seen from outside."""
    boot = [
        "bash",
        "-c",
        BOOT,
        "boot",
        folder.name,
        str(folder / "hosts"),
        str(folder / "ssh") if ssh else "",
    ]
    new = ["unshare", *ALL_BUT_PROCESSES, "--pid", "--fork", "--kill-child", "--mount-proc"]
    log = folder / "boot.log"
    parent = _start(stack, [*new, *boot], log)
    _wait(lambda: "listening" in log.read_text(), f"{folder.name}'s first process, see {log}")
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
