"""The server: one prediction at a time, a bounded queue, a page that answers meanwhile, plain errors."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import refusal
from page_support import Client, film, form_of, own_headers, page_of, save_model, send, talk
from support import LIMIT, small_model

from awtpn.cli import predict
from awtpn.cli.parser import make_parser
from awtpn.inference.page import server as module
from awtpn.inference.page.server import FULL, INTERNAL, MOST_CLIPS, PageServer, address_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "mine")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("clips") / "film.mp4")


@pytest.fixture
def server(model: Path, tmp_path: Path) -> PageServer:
    return page_of(model, tmp_path / "sent")


class Slow:
    """Stands in for `answer_clip`: each call waits until `go` is set; `most` calls ran at a time."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls, self.running, self.most = 0, 0, 0

    def __call__(self, predictor: Any, clip: Any, on_stage: Callable[[str], None]) -> dict[str, Any]:
        self.calls, self.running = self.calls + 1, self.running + 1
        self.most = max(self.most, self.running)
        on_stage("predicting")
        assert self.go.wait(LIMIT)
        self.running -= 1
        return {"number": self.calls}


async def until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not found():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_the_stages_come_before_the_answer(server: PageServer, clip: Path) -> None:
    status, lines = talk(server, lambda client: send(server, client, clip))
    assert status == 200
    assert [line["stage"] for line in lines[:-1]] == ["listening", "encoding", "predicting", "drawing"]
    assert lines[-1].keys() == {"answer"}
    assert not list(server.folder.iterdir())
    assert not server.is_predicting


def test_one_clip_at_a_time_and_the_page_answers_meanwhile(
    server: PageServer, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "answer_clip", slow := Slow())

    async def conversation(client: Client) -> list[Any]:
        sent = []
        for number in range(MOST_CLIPS):
            sent.append(asyncio.create_task(send(server, client, clip)))
            await until(lambda n=number: len(list(server.folder.iterdir())) == n + 1)  # type: ignore[misc]
        await until(lambda: slow.running == 1)
        assert server.is_predicting
        assert await send(server, client, clip) == (503, [{"error": FULL}])
        async with client.get("/") as response:
            assert response.status == 200
        slow.go.set()
        return list(await asyncio.gather(*sent))

    found = talk(server, conversation)
    assert (slow.calls, slow.most) == (MOST_CLIPS, 1)
    assert [lines[-1]["answer"]["number"] for _, lines in found] == list(range(1, MOST_CLIPS + 1))
    assert [lines[0] for _, lines in found[:3]] == [{"stage": "listening"}, {"waiting": 1}, {"waiting": 2}]
    assert not list(server.folder.iterdir())


def test_a_sender_that_is_gone_gets_no_prediction(
    server: PageServer, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "answer_clip", slow := Slow())

    async def conversation(client: Client) -> None:
        first = asyncio.create_task(send(server, client, clip))
        await until(lambda: slow.running == 1)
        async with client.post(
            "/predict", data=form_of(clip), headers=own_headers(server, client)
        ) as response:
            assert json.loads(await response.content.readline()) == {"waiting": 1}
            response.close()
        await asyncio.sleep(0.1)
        slow.go.set()
        await first
        await until(lambda: not list(server.folder.iterdir()))
        assert (await send(server, client, clip))[0] == 200, "its place is free"

    talk(server, conversation)
    assert slow.calls == 2
    assert caplog.text == ""


def test_a_sender_that_breaks_off_leaves_nothing(
    server: PageServer, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def conversation(client: Client) -> None:
        own = own_headers(server, client) | {"Host": f"127.0.0.1:{client.port}", "Content-Length": "100000"}
        own["Content-Type"] = "multipart/form-data; boundary=line"
        lines = ["POST /predict HTTP/1.1", *(f"{name}: {value}" for name, value in own.items())]
        part = ["--line", 'Content-Disposition: form-data; name="clip"', "", "x" * 10_000]
        _, writer = await asyncio.open_connection("127.0.0.1", client.port)
        writer.write("\r\n".join([*lines, "", *part]).encode())
        await until(lambda: len(list(server.folder.iterdir())) == 1)
        writer.close()
        await until(lambda: not list(server.folder.iterdir()))
        assert (await send(server, client, clip))[0] == 200

    talk(server, conversation)
    assert caplog.text == ""


def test_an_error_of_ours_is_told_in_the_terminal_alone(
    server: PageServer, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("/private/place is broken")

    monkeypatch.setattr(module, "answer_clip", fail)
    assert talk(server, lambda client: send(server, client, clip))[1][-1] == {"error": INTERNAL}
    monkeypatch.setattr(module, "receive", fail)
    assert talk(server, lambda client: send(server, client, clip)) == (500, [{"error": INTERNAL}])
    assert caplog.text.count("RuntimeError: /private/place is broken") == 2
    assert not list(server.folder.iterdir())


def test_a_library_that_is_not_installed_is_named(
    server: PageServer, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ImportError('reading recordings needs PyAV: pip install "awtpn-at-scale[extract]"')

    monkeypatch.setattr(module, "clip_to_predict", fail)
    assert talk(server, lambda client: send(server, client, clip))[1][-1] == {
        "error": 'reading recordings needs PyAV: pip install "awtpn-at-scale[extract]"'
    }


def test_words_are_not_logged(tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server = page_of(save_model(tmp_path / "mine", ["audio", "text"]), tmp_path / "sent")
    talk(server, lambda client: send(server, client, clip, "marmalade"))
    talk(server, lambda client: send(server, client, None, "marmalade"))
    assert "marmalade" not in caplog.text
    assert "predicted without" not in caplog.text


def test_no_response_names_a_path(server: PageServer, clip: Path, tmp_path: Path) -> None:
    async def conversation(client: Client) -> str:
        texts = [json.dumps(await send(server, client, path)) for path in (clip, broken)]
        for route in module.FILES | {"/model": None, "/nothing": None}:
            async with client.get(route) as response:
                texts.append(await response.text() + str(response.headers))
        return "\n".join(texts)

    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:2000])
    text = talk(server, conversation)
    for path in (tmp_path, server.folder, clip.parent, Path(module.__file__).parent, Path.home()):
        assert str(path) not in text
    assert "/data/private" not in text


def test_addresses() -> None:
    assert address_of("127.0.0.1", 8765) == "http://127.0.0.1:8765/"
    assert address_of("0.0.0.0", 8765) == "http://127.0.0.1:8765/"
    assert address_of("::1", 8765) == address_of("::", 8765) == "http://[::1]:8765/"
    assert address_of("lab.example", 80) == "http://lab.example:80/"


def test_a_prediction_that_runs_at_the_end_is_not_waited_for(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "run_page", lambda *_: True)
    ended: list[int] = []
    monkeypatch.setattr(predict.os, "_exit", ended.append)
    predict.run_serve(make_parser().parse_args(["serve", str(model)]))
    assert ended == [0]


# --- The command ---------------------------------------------------------------------------------


def test_a_model_of_other_features_is_refused(tmp_path: Path) -> None:
    small_model().float().save_pretrained(tmp_path / "own")
    assert refusal("serve", tmp_path / "own").startswith(
        f"error: {tmp_path / 'own'} cannot be tried with recordings: how the model's features of audio and "
        "video were made is not recorded, so they cannot be extracted from a recording: "
    )


def test_a_model_of_a_demo_is_refused(tmp_path: Path) -> None:
    model = small_model().float()
    model.provenance = {"format": "demo"}
    model.save_pretrained(tmp_path / "own")
    assert refusal("serve", tmp_path / "own") == (
        f"error: {tmp_path / 'own'} cannot be tried with recordings: its features are made up, not made of "
        "recordings: train on your own"
    )


def test_options_out_of_range_are_refused(tmp_path: Path) -> None:
    assert refusal("serve", tmp_path, "--max_seconds", "0") == "error: --max_seconds 0: give a number above 0"
    assert refusal("serve", tmp_path, "--max_megabytes", "-1") == (
        "error: --max_megabytes -1: give a number above 0"
    )
    assert refusal("serve", tmp_path, "--port", "70000") == (
        "error: --port 70000: give a number from 0 to 65535"
    )
    assert "it does not exist" in refusal("serve", tmp_path / "gone")


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_an_open_address_is_warned_of(
    host: str,
    warned: bool,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(module, "run_page", lambda *words: given.extend(words[1:6]) or False)
    predict.run_serve(
        make_parser().parse_args(
            ["serve", str(model), "--host", host, "--max_megabytes", "0.5", "--max_seconds", "9"]
        )
    )
    assert given == [str(model), host, 8765, 500_000, 9.0]
    assert capsys.readouterr().err == (
        "warning: --host 0.0.0.0: anybody on the network can open this page and send clips\n"
        if warned
        else ""
    )
