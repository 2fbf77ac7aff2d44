"""Shared by the tests of elastic training: torchrun agents, one per node, and the store where they meet."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from support import LIMIT, arguments, free_port, launched, metrics

TRAIN = "tests/distributed/elastic_train.py"
# As launch/README.md gives it, for a host that is none of the job's.
STORE = """import time, torch.distributed as d; s = d.TCPStore('localhost', {port}, is_master=True, \
wait_for_workers=False); time.sleep(1e9)"""
# Whole seconds. torchrun takes a node for lost that was silent for interval x attempts, and waits for
# further nodes for last_call.
SOON = {"last_call_timeout": 1, "keep_alive_interval": 1, "keep_alive_max_attempt": 5}
SETTINGS: dict[str, Any] = {
    "model.shared_dim": 16,
    "model.dropout": 0.0,
    "train.global_batch_size": 32,
    "train.max_steps": 16,
    "train.log_every": 1,
    "train.checkpoint_every": 4,
    "train.pictures": "never",
    "train.threads": 1,
    "data.streams": 1,
}
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo"}

Agent = tuple[subprocess.Popen[Any], Path]


@contextlib.contextmanager
def rendezvous_store(
    folder: Path, outside: Callable[[list[str]], list[str]] = lambda words: words
) -> Iterator[int]:
    """A process that is no agent has the rendezvous store; the port.

    Args:
        folder: for its output.
        outside: makes of a command one that runs on the store's host.
    """
    port = free_port()
    with launched(outside([sys.executable, "-c", STORE.format(port=port)]), folder / "store.log"):
        yield port


def agent_command(endpoint: str, holds: Mapping[int, int], settings: Mapping[str, Any]) -> list[str]:
    """A node with one rank, of 1 to 3 nodes; `holds` as in elastic_train.py."""
    soon = ",".join(f"{name}={value}" for name, value in SOON.items())
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "elastic"]
    options = ["--nnodes", "1:3", "--nproc-per-node", "1", "--max-restarts", "3"]
    options += [*rendezvous, "--rdzv-conf", f"is_host=false,{soon}"]
    return ["torchrun", *options, TRAIN, json.dumps(holds), *arguments(dict(settings))]


def wait_for(what: str, happened: Callable[[], bool], agents: Sequence[Agent]) -> None:
    """Wait until something happened; one of the agents must live."""
    deadline = time.monotonic() + LIMIT
    while not happened():
        alive = time.monotonic() < deadline and any(process.poll() is None for process, _ in agents)
        assert alive, f"no {what}\n" + "\n".join(
            f"--- {log.name}\n{log.read_text()[-5000:]}" for _, log in agents
        )
        time.sleep(0.05)


def wait_for_words(words: str, agents: Sequence[Agent]) -> None:
    """Wait until one of the agents has printed `words`."""
    wait_for(words, lambda: any(words in log.read_text() for _, log in agents), agents)


def wait_for_end(agents: Sequence[Agent]) -> None:
    """Wait until all agents have ended; they must succeed."""
    for process, log in agents:
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = -1
        assert code == 0, f"{log.name} ended with {code}\n{log.read_text()[-5000:]}"


def steps_of(run_dir: Path) -> list[int]:
    return [line["step"] for line in metrics(run_dir)]
