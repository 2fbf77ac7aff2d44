"""A request's body into a private file, up to a limit: a clip, and the words that are said in it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from aiohttp import BodyPartReader, web

from awtpn.inference.page.guards import RefusedRequest
from shards.sources.reading.recordings_folder import PICTURE, SOUND
from shards.sources.reading.transcripts import MOST_BYTES

T = TypeVar("T")

CHUNK = 1 << 16  # bytes
# Most seconds between two parts of a body, and for all of it: so long a slow sender keeps its place in the
# queue.
LONGEST_PAUSE_S = 30.0
LONGEST_UPLOAD_S = 600.0
# What a form has besides the clip and the words: the lines between its parts.
FORM_BYTES = 4096
PARTS = ("words", "clip")


@dataclass
class Received:
    """What somebody sent.

    Attributes:
        path: of the clip's file, or None.
        words: what is said; "" if nothing is given.
    """

    path: Path | None = None
    words: str = ""


def check_length(length: int | None, most_bytes: int) -> None:
    """Refuse a body by its stated length, before it is read.

    Raises:
        RefusedRequest: it is too large, or states no length.
    """
    if length is None:
        raise RefusedRequest(411, "the request has no Content-Length: send the clip from the page")
    if length > most_bytes + MOST_BYTES + FORM_BYTES:
        raise _too_large(most_bytes)


async def receive(request: web.Request, folder: Path, most_bytes: int, received: Received) -> None:
    """Read the form of a request: the part `clip` into a new file, the part `words` as text.

    Args:
        request: of `multipart/form-data`.
        folder: for the file. Its name is random; only a known suffix is taken from the sender's.
        most_bytes: of the clip.
        received: is filled. The caller deletes `received.path`, also after an error.

    Raises:
        RefusedRequest: a part is too large, too slow, unknown or given twice; or it is no form.
    """
    check_length(request.content_length, most_bytes)
    try:
        async with asyncio.timeout(LONGEST_UPLOAD_S):
            await _read_form(request, folder, most_bytes, received)
    except TimeoutError:
        raise RefusedRequest(408, "the clip did not arrive in time: send it again") from None
    except (ValueError, AssertionError):  # aiohttp's errors of a malformed form
        raise RefusedRequest(400, "the request is not a form of a clip and words: reload the page") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = "the disk of the machine that runs awtpn serve is full: free some space there"
        raise RefusedRequest(507, message) from None


async def _read_form(request: web.Request, folder: Path, most_bytes: int, received: Received) -> None:
    form, seen = await request.multipart(), set()
    while (part := await _soon(form.next())) is not None:
        if not isinstance(part, BodyPartReader) or part.name not in PARTS or part.name in seen:
            raise ValueError("an unknown part")
        seen.add(part.name)
        if part.name == "words":
            received.words = await _read_words(part)
        else:
            received.path = folder / f"{uuid4().hex}{known_suffix(part.filename or '')}"
            await _write_clip(part, received.path, most_bytes)


async def _read_words(part: BodyPartReader) -> str:
    content = bytearray()
    while chunk := await _soon(part.read_chunk(CHUNK)):
        content += chunk
        if len(content) > MOST_BYTES:
            raise RefusedRequest(413, "the words are too many for an utterance: give those of the clip")
    return content.decode("utf-8")


async def _write_clip(part: BodyPartReader, path: Path, most_bytes: int) -> None:
    size = 0
    with path.open("xb") as file:
        while chunk := await _soon(part.read_chunk(CHUNK)):
            size += len(chunk)
            if size > most_bytes:
                raise _too_large(most_bytes)
            file.write(chunk)
    if not size:
        raise RefusedRequest(400, "the clip is empty: choose or record another one")


def known_suffix(name: str) -> str:
    """The suffix of a recording's name, if it is one of a recording; else "": FFmpeg looks at the content."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix in SOUND | PICTURE else ""


async def _soon(reading: Coroutine[Any, Any, T]) -> T:
    """What `reading` gives, or TimeoutError if that takes too long."""
    return await asyncio.wait_for(reading, LONGEST_PAUSE_S)


def _too_large(most_bytes: int) -> RefusedRequest:
    return RefusedRequest(
        413,
        f"the clip has more than {most_bytes / 1e6:g} MB: send a shorter one, or start awtpn serve with a "
        "larger --max_megabytes",
    )
