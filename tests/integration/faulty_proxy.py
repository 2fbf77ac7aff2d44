"""A proxy between a client and an object store that counts requests and, when told to, misbehaves."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE = 1 << 16


class FaultyProxy:
    """Forwards requests to a store.

    Attributes:
        gets: complete and incomplete GETs by path.
        rate: bytes per second of each answer; None for no limit.
        refuse: how many GETs of tars shall still be answered with 503.
        cut: how many answers to GETs of tars shall still end in the middle.
        hang: answer nothing at all any more.
        in_body: called with the path when the body of a tar is a third through.
        before: called with the method and path of each request; if it returns a status, that is the answer.
    """

    def __init__(
        self,
        upstream_port: int,
        address: str = "127.0.0.1",
        network: AbstractContextManager[None] | None = None,
    ) -> None:
        """Listen at an address; in the block `network`, where it is that of another host."""
        self.gets: Counter[str] = Counter()
        self.rate: float | None = None
        self.refuse = self.cut = 0
        self.hang = False
        self.in_body: Callable[[str], None] | None = None
        self.before: Callable[[str, str], int | None] | None = None
        self.lock = threading.Lock()
        self.released = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.serve(self, upstream_port)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        with network or nullcontext():
            self.server = ThreadingHTTPServer((address, 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://{address}:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def take(self, fault: str) -> bool:
        """Whether it is this request's turn to meet the fault."""
        with self.lock:
            left = getattr(self, fault)
            setattr(self, fault, max(0, left - 1))
        return left > 0

    def serve(self, request: BaseHTTPRequestHandler, upstream_port: int) -> None:
        path = request.path.partition("?")[0]
        tar = request.command == "GET" and path.endswith(".tar")
        if request.command == "GET":
            with self.lock:
                self.gets[path] += 1
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if self.hang:
            self.released.wait()
            request.close_connection = True
            return
        status = self.before(request.command, path) if self.before else None
        if status or (tar and self.take("refuse")):
            request.send_response(status or 503)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        upstream = http.client.HTTPConnection("127.0.0.1", upstream_port, timeout=600)
        try:
            upstream.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                upstream.putheader(name, value)
            upstream.endheaders(body)
            self.answer(request, upstream.getresponse(), path, tar)
        except (OSError, http.client.HTTPException):
            # The store died, or the client went away.
            request.close_connection = True
        finally:
            upstream.close()

    def answer(
        self, request: BaseHTTPRequestHandler, response: http.client.HTTPResponse, path: str, tar: bool
    ) -> None:
        request.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                request.send_header(name, value)
        request.end_headers()
        size = int(response.getheader("Content-Length") or 0)
        sent, told = 0, False
        cut = tar and self.take("cut")
        while request.command != "HEAD" and (piece := response.read(PIECE)):
            request.wfile.write(piece)
            sent += len(piece)
            if self.rate:
                time.sleep(len(piece) / self.rate)
            if tar and not told and sent > size / 3:
                told = True
                if self.in_body:
                    self.in_body(path)
                if cut:
                    break
        if request.command != "HEAD" and sent < size:
            request.close_connection = True
