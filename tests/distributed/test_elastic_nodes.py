"""Nodes that are lost and added while torchrun trains: the run goes on by itself, with the same losses.

Each node is a torchrun agent with one rank. The rendezvous store is a process of its own, so that any of the
nodes can be lost, also the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elastic_support import (
    ENVIRONMENT,
    SETTINGS,
    Agent,
    agent_command,
    rendezvous_store,
    steps_of,
    wait_for_end,
    wait_for_words,
)
from ranks_support import run_ranks
from support import LIMIT, arguments, assert_like_runs, kill_tree, launched, status

from awtpn.run import checkpoint

STEPS = SETTINGS["train.max_steps"]


@pytest.fixture(scope="module")
def alone(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    settings = SETTINGS | {"data.train": corpus, "run.dir": folder / "run"}
    run_ranks([{"train": arguments(settings)}], 1, folder)
    return folder / "run"


Start = Callable[[str, dict[int, int], int], Agent]


@pytest.fixture
def start(corpus: str, tmp_path: Path) -> Iterator[Start]:
    """Start a node of this name, with these holds (see elastic_train.py) and this port of the store."""
    settings = SETTINGS | {"data.train": corpus, "run.dir": tmp_path / "run"}
    with contextlib.ExitStack() as stack:

        def start(name: str, holds: dict[int, int], port: int) -> Agent:
            log, command = tmp_path / f"{name}.log", agent_command(f"127.0.0.1:{port}", holds, settings)
            command[1:1] = ["--local-addr", "127.0.0.1"]
            return stack.enter_context(launched(command, log, **ENVIRONMENT)), log

        yield start


def test_nodes_are_lost_and_added(start: Start, alone: Path, tmp_path: Path) -> None:
    """2 nodes, 1 from step 6 on, 3 from step 12 on, which do not divide the batch of 32, and 2 from step 14.

    The first node is killed; the last one gets a signal, as from a scheduler that takes it away.
    """
    run_dir, holds = tmp_path / "run", {7: 1, 11: 3, 13: 2}
    with rendezvous_store(tmp_path) as port:
        agents = [start("first", holds, port), start("second", holds, port)]
        wait_for_words("at step 7: 2 ranks, not 1", agents)
        main, other = sorted(agents, key=lambda agent: "at step 7" not in agent[1].read_text())
        kill_tree(main[0])
        wait_for_words("at step 11: 1 ranks, not 3", [other])
        assert "32 utterances a step; 16 steps, resumed at step 6" in other[1].read_text()
        agents = [other, start("third", holds, port), start("fourth", holds, port)]
        wait_for_words("at step 13: 3 ranks, not 2", agents)
        taken, left = agents[2], agents[:2]
        taken[0].terminate()
        wait_for_end(left)
    assert taken[0].wait(LIMIT) != 0
    text = "".join(log.read_text() for _, log in left)
    assert "3 ranks x micro-batch of at most 11" in text
    assert (
        "2 ranks x micro-batch 16 x accumulation 1 = 32 utterances a step; 16 steps, resumed at step 14"
        in text
    )
    assert "may not meet again" not in text, "a warning of a setting that is right"
    assert status(run_dir)["status"] == "done"
    assert steps_of(run_dir) == list(range(1, STEPS + 1))
    assert_like_runs(run_dir, alone)


def test_without_the_rendezvous_store_all_nodes_end_with_a_checkpoint(start: Start, tmp_path: Path) -> None:
    with rendezvous_store(tmp_path) as port:
        agents = [start(name, {7: 3}, port) for name in ("first", "second")]
        wait_for_words("at step 7: 2 ranks, not 3", agents)
    for process, log in agents:
        assert process.wait(LIMIT) != 0, log.read_text()
    assert status(tmp_path / "run")["status"] == "preempted"
    assert checkpoint.find_latest(tmp_path / "run" / "checkpoints") is not None
