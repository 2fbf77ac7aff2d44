"""The server of the page: its routes, one prediction at a time, from the start to Ctrl-C.

A request to predict is a form with a clip or words, and is answered with lines of JSON: how far it is
(`{"stage": ...}`, `{"waiting": places}`), then `{"answer": ...}` or `{"error": ...}`. Clips lie in a private
temporary folder, each only until it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import tempfile
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from awtpn.inference.page.answers import answer_clip, facts_of
from awtpn.inference.page.clips import clip_to_predict
from awtpn.inference.page.guards import HEADERS, RefusedRequest, check_host, check_origin
from awtpn.inference.page.uploads import Received, receive
from awtpn.inference.predictor import Predictor
from shards.safe_io.json_text import json_text
from shards.safe_io.printable import get_logger

logger = get_logger(__name__)

# Clips that are sent, wait or are predicted at a time. More are refused, so that they cannot fill the disk.
MOST_CLIPS = 8
# Most seconds to wait at the end for responses that are being written.
SHUTDOWN_S = 0.5
TOKEN_PLACE = "{{token}}"
FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/draw.js": ("draw.js", "text/javascript"),
}
INTERNAL = "awtpn serve failed at this clip: its terminal shows why; try another clip"
FULL = f"{MOST_CLIPS} clips wait already: try again in a minute"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PageServer:
    """The page of one model.

    Attributes:
        token: that the page's requests carry.
        is_predicting: whether a prediction runs in its thread.
    """

    def __init__(
        self, predictor: Predictor, model: str, host: str, most_bytes: int, most_seconds: float, folder: Path
    ) -> None:
        """Prepare the page; it does not listen yet.

        Args:
            predictor: of the model.
            model: as it was given, a folder or a hub id.
            host: the address on which it will listen.
            most_bytes, most_seconds: of a clip.
            folder: for clips, which nobody else can read.
        """
        self.predictor, self.host, self.folder = predictor, host, folder
        self.most_bytes, self.most_seconds = most_bytes, most_seconds
        self.token = secrets.token_urlsafe(24)
        self.is_predicting = False
        self.facts = json_text(facts_of(predictor, model, most_bytes, most_seconds))
        self.files = {route: self._file(name) for route, (name, _) in FILES.items()}
        self._clips = 0
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")

    def application(self) -> web.Application:
        """The routes, behind the checks and with the headers of `guards`."""
        app = web.Application(middlewares=[self._checked])
        app.on_response_prepare.append(_add_headers)
        for route in FILES:
            app.router.add_get(route, self._send_file)
        app.router.add_get("/model", self._send_facts)
        app.router.add_post("/predict", self._predict)
        return app

    def close(self) -> None:
        """Begin no further prediction."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _file(self, name: str) -> str:
        text = (Path(__file__).parent / name).read_text(encoding="utf-8")
        return text.replace(TOKEN_PLACE, self.token) if name == "page.html" else text

    @web.middleware
    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check a request, and turn errors into one line without paths."""
        try:
            check_host(request.headers, self.host)
            if request.method not in ("GET", "HEAD"):
                check_origin(request.headers, self.token)
            return await handler(request)
        except RefusedRequest as refused:
            return _error(refused.status, str(refused))
        except web.HTTPException as error:
            return _error(error.status, error.reason)
        except ConnectionError:
            return web.Response(status=400)  # to nobody: the sender is gone. aiohttp would log the error
        except Exception:
            logger.exception("a request failed")
            return _error(500, INTERNAL)

    async def _send_file(self, request: web.Request) -> web.Response:
        kind = FILES[request.path][1]
        return web.Response(text=self.files[request.path], content_type=kind, charset="utf-8")

    async def _send_facts(self, _: web.Request) -> web.Response:
        return web.Response(text=self.facts, content_type="application/json")

    async def _predict(self, request: web.Request) -> web.StreamResponse:
        if self._clips >= MOST_CLIPS:
            raise RefusedRequest(503, FULL)
        self._clips += 1
        received = Received()
        try:
            await receive(request, self.folder, self.most_bytes, received)
            return await self._respond(request, received)
        finally:
            self._clips -= 1
            if received.path is not None:
                received.path.unlink(missing_ok=True)

    async def _respond(self, request: web.Request, received: Received) -> web.StreamResponse:
        """Wait for the turn of a clip, and send the lines of its answer."""
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        await response.prepare(request)
        if self._turn.locked():
            await _send(response, {"waiting": self._clips - 1})
        async with self._turn:
            # A sender that is gone by now gets no prediction: this raises ConnectionError.
            await _send(response, {"stage": "listening"})
            await self._run(response, received)
        await response.write_eof()
        return response

    async def _run(self, response: web.StreamResponse, received: Received) -> None:
        """Predict in the thread, and send each stage and the answer. Returns only when the thread is done."""
        loop, lines = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()

        def on_stage(stage: str) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, {"stage": stage})

        self.is_predicting = True
        work = loop.run_in_executor(self._thread, partial(self._answer, received, on_stage))
        work.add_done_callback(lambda _: lines.put_nowait(None))
        try:
            while (line := await lines.get()) is not None:
                with contextlib.suppress(ConnectionError):
                    await _send(response, line)
            with contextlib.suppress(ConnectionError):
                await _send(response, await work)
        finally:
            self.is_predicting = not work.done()

    def _answer(self, received: Received, on_stage: Callable[[str], None]) -> dict[str, Any]:
        """The last line for a clip."""
        try:
            clip = clip_to_predict(
                received.path, received.words, self.most_seconds, self.predictor.takes_text
            )
            return {"answer": answer_clip(self.predictor, clip, on_stage)}
        except (ValueError, ImportError) as error:  # of the clip; or a library is not installed
            return {"error": str(error)}
        except Exception:
            logger.exception("a clip failed")
            return {"error": INTERNAL}


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _error(status: int, message: str) -> web.Response:
    return web.Response(status=status, text=json_text({"error": message}), content_type="application/json")


async def _send(response: web.StreamResponse, line: dict[str, Any]) -> None:
    await response.write(json_text(line).encode() + b"\n")


# --- From start to end ---------------------------------------------------------------------------


def run_page(
    predictor: Predictor,
    model: str,
    host: str,
    port: int,
    most_bytes: int,
    most_seconds: float,
    announce: Callable[[str], None],
) -> bool:
    """Serve the page until Ctrl-C or SIGTERM, then delete what was sent.

    Args:
        predictor: of the model.
        model: as it was given, a folder or a hub id.
        host, port: to listen on; port 0 is any free one.
        most_bytes, most_seconds: of a clip.
        announce: called with the page's address once it can be opened.

    Returns:
        Whether a prediction is still running in its thread: nothing waits for it.

    Raises:
        ValueError: the model takes features that cannot be made from recordings, or the address cannot be
            used; says why.
    """
    for name in ("aiohttp.access", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="awtpn-serve-", ignore_cleanup_errors=True) as folder:
        return asyncio.run(
            _serve(predictor, model, host, port, most_bytes, most_seconds, Path(folder), announce)
        )


async def _serve(
    predictor: Predictor,
    model: str,
    host: str,
    port: int,
    most_bytes: int,
    most_seconds: float,
    folder: Path,
    announce: Callable[[str], None],
) -> bool:
    server = PageServer(predictor, model, host, most_bytes, most_seconds, folder)
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ValueError(_unusable(host, port, error)) from None
        announce(address_of(host, runner.addresses[0][1]))
        await stopped.wait()
    finally:
        server.close()
        await runner.cleanup()
    return server.is_predicting


def address_of(host: str, port: int) -> str:
    """The address to open on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"


def _unusable(host: str, port: int, error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"--host {host} --port {port}: cannot listen there ({reason}): give another --port or --host"
