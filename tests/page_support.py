"""Models for the page of `awtpn serve`, and requests as the page sends them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import torch
from aiohttp.test_utils import TestClient, TestServer
from media_support import chirp, numbered, record
from support import CLASSES, small_model

from awtpn.inference.page.guards import TOKEN_HEADER
from awtpn.inference.page.server import PageServer
from awtpn.inference.predictor import Predictor
from awtpn.model.models import build_model
from awtpn.model.settings import ModelConfig
from awtpn.model.task import Task
from shards.extraction.encoders import open_audio_encoder, open_text_encoder, open_video_encoder
from shards.format.feature_space import extraction_provenance

T = TypeVar("T")
Client = TestClient[Any, Any]

VALUES = Task("regression", ["valence", "activation"], [[-3, 3], [1, 5]], levels=5)
LABELS = Task("multilabel", ["loud", "<b>bright</b>"])
MOST_BYTES, MOST_SECONDS = 2_000_000, 5.0


def save_model(
    folder: Path,
    modalities: Sequence[str] = ("audio", "video"),
    task: Task | None = None,
    network: str = "awtpn",
) -> Path:
    """A model with random weights that knows how its features are made, of built-in encoders."""
    every: dict[str, Any] = {
        "audio": lambda: open_audio_encoder("logmel"),
        "video": lambda: open_video_encoder("descriptor", fps=5),
        "text": lambda: open_text_encoder("chargrams", width=32),
    }
    encoders = {modality: every[modality]() for modality in modalities}
    dims = {modality: encoder.dim for modality, encoder in encoders.items()}
    if network == "awtpn":
        model: Any = small_model(dtype=torch.float32, dims=dims, task=task)
    else:
        model = build_model(ModelConfig(name=network, modalities=list(dims)), dims, CLASSES, task=task)
    model.provenance = extraction_provenance(encoders)
    model.record = {"dataset": "/data/private/made-up"}
    model.save_pretrained(folder)
    return folder


def film(path: Path, seconds: float = 2.0) -> Path:
    """A clip of sound and pictures."""
    pictures = [numbered(i) for i in range(round(10 * seconds))]
    return record(path, pictures, sound=chirp(seconds), sound_codec="aac")


def page_of(model: Path, folder: Path, host: str = "127.0.0.1") -> PageServer:
    """The server of a model; what is sent lies in `folder`."""
    folder.mkdir(exist_ok=True)
    predictor = Predictor.from_pretrained(model)
    predictor.encoders()
    return PageServer(predictor, str(model), host, MOST_BYTES, MOST_SECONDS, folder)


def talk(server: PageServer, conversation: Callable[[Client], Awaitable[T]]) -> T:
    """What a conversation with the server gives."""

    async def run() -> T:
        async with TestClient(TestServer(server.application())) as client:
            return await conversation(client)

    return asyncio.run(run())


def own_headers(server: PageServer, client: Client) -> dict[str, str]:
    """What the page and the browser send with a clip."""
    return {"Origin": str(client.make_url("/")).rstrip("/"), TOKEN_HEADER: server.token}


def form_of(clip: Path | None = None, words: str | None = None) -> aiohttp.MultipartWriter:
    """The form that the page sends, of a known length."""
    form = aiohttp.MultipartWriter("form-data")
    for name, content in (("words", None if words is None else words.encode()), ("clip", clip)):
        if content is None:
            continue
        part = form.append(content.read_bytes() if isinstance(content, Path) else content)
        named = {"name": name} | ({"filename": content.name} if isinstance(content, Path) else {})
        part.set_content_disposition("form-data", **named)
    return form


async def send(
    server: PageServer, client: Client, clip: Path | None = None, words: str | None = None, **headers: str
) -> tuple[int, list[dict[str, Any]]]:
    """Status and lines of the answer to a clip; `headers` in place of the page's own, "" for none."""
    given = own_headers(server, client) | {name.replace("_", "-"): value for name, value in headers.items()}
    given = {name: value for name, value in given.items() if value}
    async with client.post("/predict", data=form_of(clip, words), headers=given) as response:
        text = await response.text()
        return response.status, [json.loads(line) for line in text.splitlines()]


def answer_of(server: PageServer, clip: Path | None = None, words: str | None = None) -> dict[str, Any]:
    """The answer to a clip or to words."""
    status, lines = talk(server, lambda client: send(server, client, clip, words))
    assert status == 200, lines
    return lines[-1]["answer"]  # type: ignore[no-any-return]


def error_of(server: PageServer, clip: Path | None = None, words: str | None = None) -> str:
    """The error that the page shows for a clip."""
    _, lines = talk(server, lambda client: send(server, client, clip, words))
    return lines[-1]["error"]  # type: ignore[no-any-return]
