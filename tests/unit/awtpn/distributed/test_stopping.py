"""What a signal asks of a run."""

from __future__ import annotations

import signal

import pytest

from awtpn.distributed import stopping
from awtpn.distributed.stopping import StopFlag


@pytest.fixture(autouse=True)
def own_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(stopping.os, "write", lambda descriptor, text: len(text))


def flag(monkeypatch: pytest.MonkeyPatch, local_rank: str) -> tuple[StopFlag, list[float]]:
    now = [100.0]
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    return StopFlag(), now


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_first_signal_asks_to_stop_and_a_second_interrupt_insists(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, _ = flag(monkeypatch, "")
    assert not stop.is_set()
    stop.handle(first)
    assert stop.is_set()
    stop.handle(signal.SIGTERM)  # patience is asked for as often as one likes
    assert not stop.at_once
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT)
    assert stop.at_once


def test_a_launcher_that_passes_an_interrupt_on_does_not_insist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal sends Ctrl-C to every process, and torchrun sends it to its ranks again."""
    stop, now = flag(monkeypatch, "1")
    stop.handle(signal.SIGINT)
    now[0] += 1
    stop.handle(signal.SIGINT)
    assert stop.is_set()
    assert not stop.at_once
    now[0] += 60
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT)


@pytest.mark.parametrize(
    ("number", "by_user"), [(signal.SIGTERM, False), (signal.SIGUSR1, True), (signal.SIGINT, True)]
)
def test_torchrun_ends_ranks_by_sigterm_and_users_by_other_signals(
    number: int, by_user: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, _ = flag(monkeypatch, "1")
    stop.handle(number)
    assert stop.by_user == by_user
