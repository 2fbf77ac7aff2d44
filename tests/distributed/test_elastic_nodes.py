"""Nodes that are lost and added while torchrun trains: the run goes on by itself, with the same losses.

Each node is a torchrun agent with one rank. The rendezvous store is a process of its own, so that any of the
nodes can be lost, also the first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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

STEPS = SETTINGS["train.max_steps"]


@pytest.fixture(scope="module")
def alone(corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    settings = SETTINGS | {"data.train": corpus, "run.dir": folder / "run"}
    run_ranks([{"train": arguments(settings)}], 1, folder)
    return folder / "run"


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_nodes_are_lost_and_added(
    corpus: str, alone: Path, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    """2 nodes, 1 from step 6 on, 3 from step 12 on, which do not divide the batch of 32, and 2 from step 14.

    The first node is killed; the last one gets a signal, as from a scheduler that takes it away.
    """
    run_dir = tmp_path / "run"
    settings = SETTINGS | {"data.train": corpus, "run.dir": run_dir}
    port = stack.enter_context(rendezvous_store(tmp_path))
    command = agent_command(f"127.0.0.1:{port}", {7: 1, 11: 3, 13: 2}, settings)
    command[1:1] = ["--local-addr", "127.0.0.1"]

    def start(name: str) -> Agent:
        log = tmp_path / f"{name}.log"
        return stack.enter_context(launched(command, log, **ENVIRONMENT)), log

    agents = [start("first"), start("second")]
    wait_for_words("at step 7: 2 ranks, not 1", agents)
    main, other = sorted(agents, key=lambda agent: "at step 7" not in agent[1].read_text())
    kill_tree(main[0])
    wait_for_words("at step 11: 1 ranks, not 3", [other])
    assert "32 utterances a step; 16 steps, resumed at step 6" in other[1].read_text()
    agents = [other, start("third"), start("fourth")]
    wait_for_words("at step 13: 3 ranks, not 2", agents)
    taken, left = agents[2], agents[:2]
    taken[0].terminate()
    wait_for_end(left)
    assert taken[0].wait(LIMIT) != 0
    text = "".join(log.read_text() for _, log in left)
    assert "3 ranks x micro-batch of at most 11" in text
    assert "2 ranks x micro-batch 16 x accumulation 1 = 32 utterances a step; 16 steps, resumed at step 14" in text
    assert status(run_dir)["status"] == "done"
    assert steps_of(run_dir) == list(range(1, STEPS + 1))
    assert_like_runs(run_dir, alone)
