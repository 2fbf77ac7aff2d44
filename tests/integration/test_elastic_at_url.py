"""Nodes without a shared folder, with the run folder in an S3 store: the first one is lost during an upload.

It holds the lease, and the newest checkpoint is on its disk only. The other node takes the run over, without
waiting for the end of the lease, and goes on from what is at the URL. Then a new node takes the lost one's
place.
"""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

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

from awtpn.run.remote import checkpoints, files
from awtpn.run.remote.session import agree

STEPS = SETTINGS["train.max_steps"]
URL = "s3://elastic/run"


def test_the_first_node_is_lost_in_an_upload_and_replaced(
    swift: laboratory.Swift, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    s3fs.S3FileSystem(**options(swift.endpoint)).mkdir("elastic")
    settings = SETTINGS | {"data.train": pack_corpus(tmp_path / "data"), "run.upload_every": 1}
    run_ranks([{"train": arguments(settings | {"run.dir": tmp_path / "alone"})}], 1, tmp_path)
    at_url = settings | {"run.dir": URL, "run.storage_options": json.dumps(options(proxy.endpoint))}
    agents: list[Agent] = []
    lost = threading.Event()

    def before(method: str, path: str) -> int | None:
        """The second checkpoint is being sent: its node is lost."""
        if method != "PUT" or "checkpoints/step-00000004" not in path:
            return None
        if not lost.is_set():
            kill_tree(main_of(agents)[0])
            lost.set()
        return 503

    proxy.before = before
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(rendezvous_store(tmp_path))
        command = agent_command(f"127.0.0.1:{port}", {11: 2}, at_url)
        command[1:1] = ["--local-addr", "127.0.0.1"]

        def start(name: str) -> Agent:
            log, cache = tmp_path / f"{name}.log", tmp_path / name
            environment = ENVIRONMENT | {"AWTPN_CACHE_DIR": str(cache)}
            return stack.enter_context(launched(command, log, **environment)), log

        agents += [start("first"), start("second")]
        wait_for("loss", lost.is_set, agents)
        proxy.before = None
        [other] = [agent for agent in agents if agent is not main_of(agents)]
        wait_for_words("at step 11: 1 ranks, not 2", [other])
        text = other[1].read_text()
        assert "32 utterances a step; 16 steps, resumed at step 2" in text
        assert "may be in use" not in text, "it waited for the end of the lease"
        assert "held another run" not in text
        agents = [other, start("third")]
        wait_for_end(agents)
    store = files.open_remote(URL, options(swift.endpoint))
    assert json.loads(files.read_bytes(store, "status.json") or b"")["status"] == "done"
    assert checkpoints.read_pointer(store).latest == f"step-{STEPS:08d}"
    agree(store, tmp_path / "copy")
    assert steps_of(tmp_path / "copy") == list(range(1, STEPS + 1))
    assert_like_runs(tmp_path / "copy", tmp_path / "alone")


def main_of(agents: list[Agent]) -> Agent:
    """The node of rank 0, which alone prints."""
    [main] = [agent for agent in agents if "2 ranks x micro-batch" in agent[1].read_text()]
    return main
