"""A real object store for tests: OpenStack Swift with its S3 interface, one device, plain processes."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import LIMIT, free_port

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALLED = Path(os.environ.get("SWIFT_VENV", REPOSITORY / "build" / "swift"))

KEY, SECRET = "test:tester", "testing-secret"

SERVERS = ("account", "container", "object", "proxy")

COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
log_level = WARNING
"""
STORAGE = """
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
PROXY = """
[pipeline:main]
pipeline = catch_errors s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
# A server that died is asked again at once, not in a minute.
error_suppression_interval = 0
# Servers that are killed refuse at once; one that is only slow is waited for.
node_timeout = 60
conn_timeout = 10
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:s3api]
use = egg:swift#s3api
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:slo]
use = egg:swift#slo
allow_async_delete = false
"""
RINGS = """
import sys
from swift.common.ring import RingBuilder
folder = sys.argv[1]
for name, port in zip(("account", "container", "object"), sys.argv[2:]):
    builder = RingBuilder(2, 1, 0)
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1, "device": "d", "ip": "127.0.0.1",
                     "port": int(port), "replication_ip": "127.0.0.1", "replication_port": int(port)})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""
# Every Python of the servers runs this first.
CLOCK = """
import time
of_host = time.time
time.time = lambda: of_host() + {}
"""


def options(endpoint: str, **changes: Any) -> dict[str, Any]:
    """Storage options of s3fs."""
    return {"key": KEY, "secret": SECRET, "endpoint_url": endpoint} | changes


def missing(folder: Path) -> str | None:
    """Why Swift cannot run here, with its data in `folder`; None if it can."""
    if not (INSTALLED / "bin" / "swift-proxy-server").exists():
        return f"Swift is not installed in {INSTALLED}: run tests/integration/install_swift.sh"
    try:
        folder.joinpath("probe").touch()
        os.setxattr(folder / "probe", "user.probe", b"1")
    except (OSError, AttributeError) as error:
        return f"Swift keeps metadata in extended attributes, and {folder} has none ({error})"
    return None


@dataclass
class Swift:
    """A running store.

    Attributes:
        folder: of its data, configuration and logs.
        ports: by server.
        clock_ahead_s: by so much the clock of its servers is ahead of this host's.
        processes: by server.
    """

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    clock_ahead_s: float = 0.0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    def start(self, name: str) -> None:
        """Start a server and wait until it answers."""
        command = [INSTALLED / "bin" / f"swift-{name}-server", self.folder / f"{name}.conf"]
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(self.folder)},  # finds sitecustomize.py
            )
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline and self.processes[name].poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.ports[name])) == 0:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{name} does not start: {(self.folder / f'{name}.log').read_text()[-2000:]}")

    def kill(self, name: str) -> None:
        """Kill a server as a power cut would."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def restart(self, name: str, setting: str, value: str) -> None:
        """Kill a server and start it with another value in its configuration."""
        self.kill(name)
        file = self.folder / f"{name}.conf"
        lines = [
            f"{setting} = {value}" if line.partition("=")[0].strip() == setting else line
            for line in file.read_text().splitlines()
        ]
        file.write_text("\n".join(lines) + "\n")
        self.start(name)

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)


def start_swift(folder: Path, clock_ahead_s: float = 0.0) -> Swift:
    """Configure and start all servers, with their data in `folder`."""
    (folder / "devices" / "d").mkdir(parents=True)
    swift = Swift(folder, dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True)), clock_ahead_s)
    (folder / "sitecustomize.py").write_text(CLOCK.format(clock_ahead_s))
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = tests\n")
    settings: dict[str, Any] = {"folder": folder, "secret": SECRET, "user": pwd.getpwuid(os.getuid()).pw_name}
    for name, port in swift.ports.items():
        text = COMMON + (PROXY if name == "proxy" else STORAGE)
        (folder / f"{name}.conf").write_text(text.format(name=name, port=port, **settings))
    ports = [str(swift.ports[name]) for name in ("account", "container", "object")]
    subprocess.run([INSTALLED / "bin" / "python", "-c", RINGS, folder, *ports], check=True)
    try:
        for name in SERVERS:
            swift.start(name)
    except BaseException:
        swift.stop()
        raise
    return swift


def free_ports(number: int) -> list[int]:
    """Ports that no program uses, all different."""
    return [free_port() for _ in range(number)]
