"""Hosts without a shared folder, with the run folder in an S3 store: the first one is lost during an upload.

It holds the lease, and the newest checkpoint is on its disk only. The other node takes the run over, without
waiting for the end of the lease, and goes on from what is at the URL. Then a new node takes the lost one's
place.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import swift as laboratory
from elastic_support import (
    ENVIRONMENT,
    SETTINGS,
    Agent,
    agent_command,
    rendezvous_store,
    steps_of,
    wait_for,
    wait_for_end,
    wait_for_words,
)
from faulty_proxy import FaultyProxy
from ranks_support import run_ranks
from support import arguments, assert_like_runs, kill_tree, launched, pack_corpus
from swift import options
from two_hosts import Host, build_hosts, why_not

from awtpn.run.remote import checkpoints, files
from awtpn.run.remote.session import agree

STEPS = 8
URL = "s3://elastic/run"
# A node that dies without a packet is noticed by this; none of what the nodes do takes so long.
TIMEOUT_S = 20


@dataclass(frozen=True)
class Node:
    """Where an agent runs: a host of its own, or a process with a cache of its own where there are none.

    Attributes:
        address: for the other nodes.
        cache: its own; no other node sees it.
        host: None for a process of this host.
    """

    address: str
    cache: Path
    host: Host | None = None

    def start(self, command: list[str], stack: contextlib.ExitStack, log: Path) -> Agent:
        environment = ENVIRONMENT | {"AWTPN_CACHE_DIR": str(self.cache)}
        command = [command[0], "--local-addr", self.address, *command[1:]]
        if self.host is not None:
            environment["GLOO_SOCKET_IFNAME"] = "eth0"
            command = self.host.command(command)
        return stack.enter_context(launched(command, log, **environment)), log

    def lose(self, agent: Agent) -> None:
        if self.host is None:
            kill_tree(agent[0])
        else:
            self.host.die()


@pytest.fixture
def place(
    swift: laboratory.Swift, tmp_path: Path
) -> Iterator[tuple[list[Node], FaultyProxy, Callable[[list[str]], list[str]], str]]:
    """Three nodes, a way to S3, and how the rendezvous store is started, and its address."""
    if why_not(ssh=False) is not None:
        nodes = [Node("127.0.0.1", tmp_path / f"cache-{i}") for i in range(3)]
        with contextlib.closing(FaultyProxy(swift.ports["proxy"])) as proxy:
            yield nodes, proxy, lambda words: words, "127.0.0.1"
        return
    cache = tmp_path / "cache"
    cache.mkdir()
    with build_hosts(tmp_path / "hosts", ("host-1", "host-2", "host-3"), ssh=False) as (*hosts, switch):
        for host in hosts:
            host.hide(cache)
        outside = ["nsenter", f"--target={switch.first_process}", "--net"]
        proxy = FaultyProxy(swift.ports["proxy"], switch.address, switch.network())
        with contextlib.closing(proxy):
            nodes = [Node(host.address, cache, host) for host in hosts]
            yield nodes, proxy, lambda words: [*outside, *words], switch.address


def test_the_first_node_is_lost_in_an_upload_and_replaced(
    swift: laboratory.Swift, place: Any, tmp_path: Path
) -> None:
    """torchrun orders nodes by address: host 2 has rank 0 before host 3, and later host 1 before it."""
    import s3fs

    s3fs.S3FileSystem(**options(swift.endpoint)).mkdir("elastic")
    (added, first, second), proxy, outside, address = place
    settings = SETTINGS | {"train.max_steps": STEPS, "run.upload_every": 1}
    settings["data.train"] = pack_corpus(tmp_path / "data")
    run_ranks([{"train": arguments(settings | {"run.dir": tmp_path / "alone"})}], 1, tmp_path)
    at_url = settings | {"run.dir": URL, "run.storage_options": json.dumps(options(proxy.endpoint))}
    at_url["train.timeout"] = TIMEOUT_S
    agents: list[Agent] = []
    lost = threading.Event()

    def before(method: str, path: str) -> int | None:
        """The second checkpoint is being sent: its node is lost."""
        if method != "PUT" or "checkpoints/step-00000004" not in path:
            return None
        if not lost.is_set():
            first.lose(agents[0])
            lost.set()
        return 503

    proxy.before = before
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(rendezvous_store(tmp_path, outside))
        command = agent_command(f"{address}:{port}", {5: 2}, at_url)
        for node, name in ((first, "first"), (second, "second")):
            agents.append(node.start(command, stack, tmp_path / f"{name}.log"))
        wait_for("loss", lost.is_set, agents)
        proxy.before = None
        _, other = agents
        wait_for_words("at step 5: 1 ranks, not 2", [other])
        text = other[1].read_text()
        assert "32 utterances a step; 8 steps, resumed at step 2" in text
        assert "may be in use" not in text, "it waited for the end of the lease"
        assert "held another run" not in text
        agents = [other, added.start(command, stack, tmp_path / "added.log")]
        wait_for_end(agents)
    store = files.open_remote(URL, options(swift.endpoint))
    assert json.loads(files.read_bytes(store, "status.json") or b"")["status"] == "done"
    assert checkpoints.read_pointer(store).latest == f"step-{STEPS:08d}"
    agree(store, tmp_path / "copy")
    assert steps_of(tmp_path / "copy") == list(range(1, STEPS + 1))
    assert_like_runs(tmp_path / "copy", tmp_path / "alone")
