"""What is sent: limits of size, time and length, clips that are none, and what is left of them (nothing)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from media_support import numbered, record
from page_support import (
    MOST_BYTES,
    Client,
    answer_of,
    error_of,
    film,
    own_headers,
    page_of,
    save_model,
    send,
    talk,
)

from awtpn.inference.page import clips, uploads
from awtpn.inference.page.clips import UNREADABLE, check_recording, clip_to_predict, plain_cause
from awtpn.inference.page.server import PageServer
from shards.extraction.media import probe

BOUNDARY = "line"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
TOO_LARGE = (
    "the clip has more than 2 MB: send a shorter one, or start awtpn serve with a larger --max_megabytes"
)
NO_FORM = "the request is not a form of a clip and words: reload the page"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> PageServer:
    folder = tmp_path_factory.mktemp("uploads")
    return page_of(save_model(folder / "mine"), folder / "sent")


def part(name: str, content: bytes, filename: str = "") -> bytes:
    """A part of a form."""
    named = f'; filename="{filename}"' if filename else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def told(server: PageServer, content: bytes | AsyncIterator[bytes], **headers: str) -> tuple[int, str]:
    """Status and error of a request with this body."""

    async def conversation(client: Client) -> tuple[int, str]:
        given = own_headers(server, client) | FORM | {k.replace("_", "-"): v for k, v in headers.items()}
        async with client.post("/predict", data=content, headers=given) as response:
            return response.status, (await response.json())["error"]

    found = talk(server, conversation)
    assert not list(server.folder.iterdir()), "nothing is left"
    return found


def test_a_large_clip_is_refused_by_its_length_or_while_it_comes(server: PageServer, tmp_path: Path) -> None:
    much = tmp_path / "much.mp4"
    much.write_bytes(bytes(MOST_BYTES + 10_000_000))
    assert talk(server, lambda client: send(server, client, much)) == (413, [{"error": TOO_LARGE}])
    # Within what the whole form may have, and more than a clip.
    assert told(server, body(part("clip", bytes(MOST_BYTES + 1)))) == (413, TOO_LARGE)
    assert not list(server.folder.iterdir())


def test_a_form_states_its_length(server: PageServer) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield part("clip", bytes(1000))

    assert told(server, endless()) == (
        411,
        "the request has no Content-Length: send the clip from the page",
    )


def test_many_words_are_refused(server: PageServer) -> None:
    assert told(server, body(part("words", b"a " * 500_000))) == (
        413,
        "the words are too many for an utterance: give those of the clip",
    )


@pytest.mark.parametrize(
    "content",
    [
        b"no form",
        body(part("other", b"x")),
        body(part("words", b"x"), part("words", b"x")),
        body(part("words", b"caf\xe9")),
    ],
    ids=["no form", "an unknown part", "twice", "not UTF-8"],
)
def test_another_form_is_refused(server: PageServer, content: bytes) -> None:
    assert told(server, content) == (400, NO_FORM)


def test_another_content_type_is_refused(server: PageServer) -> None:
    assert told(server, b"{}", Content_Type="application/json") == (400, NO_FORM)


def test_an_empty_clip_is_refused(server: PageServer) -> None:
    assert told(server, body(part("clip", b"", "a.mp4"))) == (
        400,
        "the clip is empty: choose or record another one",
    )


@pytest.mark.parametrize("limit", ["LONGEST_PAUSE_S", "LONGEST_UPLOAD_S"])
def test_a_slow_sender_is_not_waited_for(
    limit: str, server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, limit, 0.2)

    async def slow() -> AsyncIterator[bytes]:
        yield part("clip", bytes(1000), "a.mp4")[:-100]
        await asyncio.sleep(0.9)

    assert told(server, slow(), Content_Length="5000") == (
        408,
        "the clip did not arrive in time: send it again",
    )


def test_a_full_disk_is_told(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def write(*_: object) -> None:
        raise OSError(28, "No space left on device", "/private/place")

    monkeypatch.setattr(uploads, "_write_clip", write)
    assert told(server, body(part("clip", b"x"))) == (
        507,
        "the disk of the machine that runs awtpn serve is full: free some space there",
    )


def test_a_name_cannot_leave_the_folder(server: PageServer, tmp_path: Path) -> None:
    for name in ("../../x.mp4", "/etc/x.mp4", "x.txt", "x.m3u8", ".mp4"):
        suffix = uploads.known_suffix(name)
        assert suffix == (".mp4" if name.endswith("x.mp4") else "")
    clip = film(tmp_path / "film.mp4").rename(tmp_path / "film")
    assert answer_of(server, clip)["duration"] == 2.0, "the content says what it is"


# --- Clips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"this is no film " * 100, b"\x00" * 5000, b"RIFF\xff\xff\xff\xffWAVEfmt "]
)
def test_a_clip_that_is_none(server: PageServer, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.mp4").write_bytes(content)
    error = error_of(server, tmp_path / "bad.mp4")
    assert error.startswith(
        ("the clip is not a recording that can be read: choose a file", "the model cannot use the clip: ")
    )
    assert str(server.folder) not in error
    assert not list(server.folder.iterdir())


def test_a_playlist_plays_no_file_of_this_machine(server: PageServer, tmp_path: Path) -> None:
    """The same error whether or not the file that it names is there."""
    private = film(tmp_path / "private.mp4")
    for named in (private, tmp_path / "gone.mp4"):
        lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", str(named), "#EXT-X-ENDLIST", ""]
        for content in ("\n".join(lines), f"ffconcat version 1.0\nfile '{named}'\n"):
            for name in ("list.m3u8", "list.mp4"):
                (tmp_path / name).write_text(content)
                assert error_of(server, tmp_path / name) == UNREADABLE
                with pytest.raises(ValueError, match="is not a recording that can be read"):
                    check_recording(tmp_path / name, 5.0)
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(
        "\n".join(["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", str(private), "#EXT-X-ENDLIST", ""])
    )
    assert probe(playlist).duration > 1, "FFmpeg alone would play it"


def test_a_long_clip_is_refused_and_never_decoded_whole(server: PageServer, tmp_path: Path) -> None:
    assert error_of(server, film(tmp_path / "long.mp4", 7.0)) == (
        "the clip is 7 s long, and at most 5 s are taken: cut it, or start awtpn serve with a larger "
        "--max_seconds"
    )
    # Whatever headers say, decoding stops: the span is a second longer than what is taken.
    clip = clip_to_predict(film(tmp_path / "film.mp4"), "", 1.5, takes_text=False)
    assert (clip.audio_span, clip.video_span) == ((0.0, 2.5), (0.0, 2.5))
    assert (clip.key, clip.text) == ("the clip", None)


def test_a_header_that_lies_does_not_lengthen_a_clip(
    server: PageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = replace(probe(film(tmp_path / "long.mp4", 9.0)), duration=1.0)
    monkeypatch.setattr(clips, "probe", lambda _: info)
    answer = answer_of(server, tmp_path / "long.mp4")
    # 6 s of 9: a second more than what is taken.
    assert {modality: len(of) for modality, of in answer["weights"].items()} == {"audio": 60, "video": 30}
    assert (answer["duration"], answer["wave"]["end"]) == (6.0, 6.0)
    assert [frame["begin"] for frame in answer["frames"]][-1] == 5.143


def test_words_that_cannot_be_used(server: PageServer, tmp_path: Path) -> None:
    clip = film(tmp_path / "film.mp4")
    assert error_of(server, clip, "What a day!") == "the model takes no text: leave the words out"
    assert error_of(server) == (
        "there is nothing to predict: choose or record a clip, or write words if the model takes text"
    )
    with pytest.raises(
        ValueError, match="the words: its text has 300000 characters; at most 200000 are read"
    ):
        clip_to_predict(clip, "x" * 300_000, 5.0, takes_text=True)
    with pytest.raises(ValueError, match="the words: its text has characters that no text has"):
        clip_to_predict(None, "a\0b", 5.0, takes_text=True)


def test_a_clip_without_what_the_model_takes(tmp_path: Path) -> None:
    server = page_of(save_model(tmp_path / "mine", ["audio"]), tmp_path / "sent")
    silent = record(tmp_path / "silent.mp4", [numbered(i) for i in range(10)])
    assert error_of(server, silent) == (
        "the model cannot use the clip: no audio to make features of; choose or record another clip"
    )


def test_causes_name_no_path(tmp_path: Path) -> None:
    clip = clip_to_predict(film(tmp_path / "film.mp4"), "", 5.0, takes_text=False)
    cause = f"{clip.audio}: no sound can be decoded from 0 s to 6 s; see /var/lib/secret/x.bin"
    assert plain_cause(cause, clip) == "no sound can be decoded; see x.bin"
