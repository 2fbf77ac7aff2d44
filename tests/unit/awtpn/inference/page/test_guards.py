"""Which requests are refused: names of other machines, other pages, pages of an earlier start."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from page_support import Client, film, form_of, own_headers, page_of, save_model, send, talk

from awtpn.inference.page.guards import TOKEN_HEADER, RefusedRequest, check_host, check_origin, is_loopback
from awtpn.inference.page.server import PageServer

FOREIGN = "another web page sent this clip: send it from the page of awtpn serve"
OTHER_NAME = "this name is not an address of awtpn serve: open the address that its terminal shows"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> PageServer:
    folder = tmp_path_factory.mktemp("guards")
    return page_of(save_model(folder / "mine"), folder / "sent")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("clips") / "film.mp4")


@pytest.mark.parametrize("name", ["localhost:8765", "127.0.0.1", "127.0.0.1:9", "[::1]:8765", "LOCALHOST"])
def test_this_machine_is_known(name: str) -> None:
    check_host({"Host": name}, "127.0.0.1")
    check_host({"Host": name}, "0.0.0.0")


@pytest.mark.parametrize(
    "name",
    ["evil.example:8765", "localhost.evil.example", "192.168.0.7:8765", "", "[::", "127.0.0.1.evil.example"],
)
def test_another_name_is_refused(name: str) -> None:
    """DNS rebinding: a foreign name that leads to 127.0.0.1 is still a foreign name."""
    with pytest.raises(RefusedRequest, match=OTHER_NAME):
        check_host({"Host": name}, "127.0.0.1")
    with pytest.raises(RefusedRequest, match=OTHER_NAME):
        check_host({}, "127.0.0.1")


def test_a_network_knows_numbers_and_its_own_names() -> None:
    for name in ("192.168.0.7:8765", "[fe80::1]:8765", socket.gethostname()):
        check_host({"Host": name}, "0.0.0.0")
    check_host({"Host": "lab.example:8765"}, "lab.example")
    with pytest.raises(RefusedRequest, match=OTHER_NAME):
        check_host({"Host": "evil.example:8765"}, "0.0.0.0")


def test_what_is_reachable_from_this_machine_alone() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.7", "lab.example")] == [False] * 4


@pytest.mark.parametrize(
    "changed",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:9"},
        {"Origin": "null"},
        {"Origin": "file://127.0.0.1:8765"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_foreign_page_is_refused(changed: dict[str, str]) -> None:
    own = {"Host": "127.0.0.1:8765", "Origin": "http://127.0.0.1:8765", TOKEN_HEADER: "secret"}
    check_origin(own, "secret")
    check_origin(own | {"Sec-Fetch-Site": "same-origin"}, "secret")
    with pytest.raises(RefusedRequest, match=FOREIGN):
        check_origin(own | changed, "secret")


@pytest.mark.parametrize("token", ["", "other", "sécret"])
def test_a_page_of_another_start_is_refused(token: str) -> None:
    own = {"Host": "127.0.0.1:8765", "Origin": "http://127.0.0.1:8765", TOKEN_HEADER: token}
    with pytest.raises(RefusedRequest, match="this page is of an earlier awtpn serve: reload it"):
        check_origin(own, "secret")


def test_the_server_asks_the_guards(server: PageServer, clip: Path) -> None:
    async def conversation(client: Client) -> list[tuple[int, str]]:
        found = []
        for headers in ({"Origin": "http://evil.example"}, {"Origin": ""}, {"X_Page_Token": "x"}):
            status, lines = await send(server, client, clip, **headers)
            found.append((status, lines[0]["error"]))
        for path in ("/", "/model", "/page.js"):
            async with client.get(path, headers={"Host": "evil.example"}) as response:
                found.append((response.status, (await response.json())["error"]))
        return found

    assert talk(server, conversation) == [
        (403, FOREIGN),
        (403, FOREIGN),
        (403, "this page is of an earlier awtpn serve: reload it"),
        *[(403, OTHER_NAME)] * 3,
    ]
    assert not list(server.folder.iterdir())


def test_a_form_of_a_foreign_page_is_refused_before_it_is_read(server: PageServer, clip: Path) -> None:
    """A form without scripts needs no permission of the browser to be sent."""

    async def conversation(client: Client) -> int:
        headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
        async with client.post("/predict", data=form_of(clip), headers=headers) as response:
            return response.status

    assert talk(server, conversation) == 403


def test_every_response_has_the_headers(server: PageServer, clip: Path) -> None:
    async def conversation(client: Client) -> list[tuple[int, dict[str, str]]]:
        found = []
        for path in ("/", "/page.css", "/page.js", "/draw.js", "/model", "/nothing", "/../guards.py"):
            async with client.get(path) as response:
                found.append((response.status, dict(response.headers)))
        own = own_headers(server, client)
        for method, headers in (("POST", {}), ("POST", own), ("OPTIONS", own)):
            async with client.request(method, "/predict", data=form_of(clip), headers=headers) as response:
                found.append((response.status, dict(response.headers)))
        return found

    found = talk(server, conversation)
    assert [status for status, _ in found] == [200] * 5 + [404] * 2 + [403, 200, 405]
    for _, headers in found:
        assert headers["Content-Security-Policy"] == (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src blob:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Server"] == "awtpn"
        assert "Access-Control-Allow-Origin" not in headers


def test_the_page_has_its_token_and_nothing_from_elsewhere(server: PageServer) -> None:
    page, *others = server.files.values()
    assert server.token in page
    assert len(server.token) == 32
    for text in (page, *others):
        assert "{{" not in text
        assert "//cdn" not in text
        assert "https:" not in text
        assert text.count("http:") == text.count("http://www.w3.org/2000/svg")
        assert "innerHTML" not in text
    assert server.token not in server.facts
