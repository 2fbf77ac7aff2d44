"""`awtpn serve` as a process, and its page in a browser: from a clip to the drawn weights and back."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import browser
import numpy as np
import pytest
from browser import until
from cli_support import awtpn
from media_support import chirp, numbered, record
from page_support import LABELS, film, save_model
from support import LIMIT, arguments, launched, run

from awtpn.inference.page.guards import TOKEN_HEADER

FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
SECONDS = 4.0
# Not in the tests: the model need not be trained then.
in_a_browser = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


def burst(at: float, seed: int, rate: int = 48000) -> np.ndarray:
    """Quiet sound with half a second of noise."""
    rng = np.random.default_rng(seed)
    loud = slice(round(at * rate), round((at + 0.5) * rate))
    sound = 0.03 * chirp(SECONDS, rate)
    sound[loud] += rng.normal(0, 0.2, len(sound[loud])).astype(np.float32)
    return sound


def flash(at: float, seed: int) -> list[np.ndarray]:
    """Bars that move slowly, and noise for half a second; 10 pictures a second."""
    rng = np.random.default_rng(seed)
    still = [np.roll(numbered(0b00111100), 2 * i, axis=1) // 2 + 40 for i in range(round(10 * SECONDS))]
    for i in range(round(10 * at), round(10 * at) + 5):
        still[i] = np.kron(rng.integers(0, 255, (12, 32, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    return still


def webm(path: Path, seed: int, is_loud: bool) -> Path:
    """A clip that browsers play; a loud one has a burst of noise and of pictures."""
    at = 0.5 + 0.1 * (seed % 28)
    pictures = flash(at, seed) if is_loud else flash(-1, seed)[: round(10 * SECONDS)]
    sound = burst(at, seed) if is_loud else 0.03 * chirp(SECONDS, 48000)
    sound = sound + np.random.default_rng(seed).normal(0, 0.002, len(sound)).astype(np.float32)
    return record(path, pictures, codec="libvpx", sound=sound, rate=48000, sound_codec="libopus")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of calm and loud clips with words, trained on recordings."""
    folder = tmp_path_factory.mktemp("serve")
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        for i in range(count):
            for label, words in (("calm", "it is a quiet day"), ("loud", "oh what a bang that was")):
                path = folder / "recordings" / split / label / f"{i}.webm"
                path.parent.mkdir(parents=True, exist_ok=True)
                webm(path, 7 * i + len(split), label == "loud")
                path.with_suffix(".txt").write_text(words)
    awtpn("extract", folder / "recordings", folder / "clips", "--fps", 5, "--text", "chargrams")
    settings = {
        "model.modalities": "audio,video,text",
        "model.shared_dim": 16,
        # Without dropout, and with absolute distances, a few steps of training make weights of a clear shape.
        **{"model.distances": "absolute", "model.statistics": "false", "model.dropout": 0, "optim.lr": 0.02},
        **{
            "optim.weight_decay": 0,
            "train.global_batch_size": 8,
            "train.max_steps": 200,
            "train.min_steps": 0,
        },
        "train.pictures": "never",
    }
    awtpn(
        "train", "--data.train", folder / "clips", "--run.dir", folder / "calm-or-loud", *arguments(settings)
    )
    return folder / "calm-or-loud"


@contextlib.contextmanager
def served(
    model: Path, folder: Path, *options: str, program: Sequence[str] = ("-m", "awtpn.cli")
) -> Iterator[tuple[str, Popen[Any], Path]]:
    """The page's address, its process, and the folder in which it makes temporary files."""
    folder.mkdir(exist_ok=True)
    log, temporary = folder / "log", folder / "temporary"
    temporary.mkdir()
    command = [sys.executable, *program, "serve", str(model), "--port", "0", *options]
    with launched(command, log, TMPDIR=str(temporary)) as process:

        def address() -> str:
            assert process.poll() is None, log.read_text()
            found = re.search(r"http://\S+", log.read_text())
            return found[0] if found else ""

        yield until(address, log.read_text), process, temporary


def files_below(folder: Path) -> list[Path]:
    return list(folder.rglob("awtpn-serve-*/*"))


# --- The process ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_says_where_it_is_and_ends_quietly(number: signal.Signals, tmp_path: Path) -> None:
    model = save_model(tmp_path / "mine")
    with served(model, tmp_path / "of") as (address, process, temporary):
        with urllib.request.urlopen(f"{address}model", timeout=LIMIT) as response:
            assert json.loads(response.read())["name"] == "mine"
        [folder] = temporary.glob("awtpn-serve-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        process.send_signal(number)
        assert process.wait(LIMIT) == 0
        assert not list(temporary.glob("awtpn-serve-*"))
    log = (tmp_path / "of" / "log").read_text()
    assert log == f"try {model} at {address} (Ctrl-C ends it)\n"


def test_it_ends_in_the_middle_of_a_prediction(tmp_path: Path) -> None:
    """A clip that is never answered: Ctrl-C deletes it and waits for nothing."""
    model = save_model(tmp_path / "mine")
    never = (
        "import threading; from awtpn.inference.page import server; from awtpn.cli import main; "
        "server.answer_clip = lambda *_: threading.Event().wait(); main()"
    )
    with served(model, tmp_path / "of", program=("-c", never)) as (address, process, temporary):
        page = urllib.request.urlopen(address, timeout=LIMIT).read().decode()
        [token] = re.findall('name="page-token" content="([^"]+)"', page)
        kind = "multipart/form-data; boundary=line"
        headers = {"Content-Type": kind, "Origin": address.rstrip("/"), TOKEN_HEADER: token}
        head = b'--line\r\nContent-Disposition: form-data; name="clip"; filename="a.mp4"\r\n\r\n'
        content = head + film(tmp_path / "a.mp4").read_bytes() + b"\r\n--line--\r\n"
        request = urllib.request.Request(f"{address}predict", content, headers)
        response = urllib.request.urlopen(request, timeout=LIMIT)
        assert json.loads(response.readline()) == {"stage": "listening"}
        assert len(files_below(temporary)) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
        assert not list(temporary.glob("awtpn-serve-*"))
    assert (tmp_path / "of" / "log").read_text() == f"try {model} at {address} (Ctrl-C ends it)\n"


def test_an_address_that_is_in_use_is_refused(tmp_path: Path) -> None:
    model = save_model(tmp_path / "mine")
    with served(model, tmp_path / "of") as (address, _, _):
        port = address.rstrip("/").rpartition(":")[2]
        words = [sys.executable, "-m", "awtpn.cli", "serve", str(model), "--port", port]
        code, log = run(words, tmp_path / "log")
    assert code == 1
    assert log.startswith(f"error: --host 127.0.0.1 --port {port}: cannot listen there (")


# --- The page in a browser -----------------------------------------------------------------------


def see(driver: Any, wanted: str) -> str:
    """The text of the page once it has `wanted`."""
    return until(
        lambda: text if wanted in (text := driver.find_element("tag name", "body").text) else "",
        lambda: (
            f"no {wanted!r}:\n{driver.find_element('tag name', 'body').text}\n{driver.get_log('browser')}"
        ),
    )


def player_time(driver: Any) -> float:
    return driver.execute_script("return document.getElementById('player').currentTime")  # type: ignore[no-any-return]


def readout(driver: Any) -> str:
    return driver.find_element("id", "readout").text  # type: ignore[no-any-return]


def count(driver: Any, selector: str) -> int:
    return len(driver.find_elements("css selector", selector))


@in_a_browser
def test_a_clip_is_answered_in_a_browser(model: Path, tmp_path: Path) -> None:
    clip = webm(tmp_path / "bang.webm", 12, True)  # the burst is from 1.7 to 2.2 s
    with served(model, tmp_path / "of") as (address, _, temporary), browser.chromium() as driver:
        driver.set_window_size(1240, 1130)
        driver.get(address)
        shown = see(driver, "calm, loud")
        assert "Try calm-or-loud" in shown
        assert "Trained on\nclips" in shown
        assert str(model.parent) not in driver.page_source
        assert not driver.find_element("id", "predict").is_enabled()
        driver.find_element("id", "file").send_keys(str(clip))
        driver.find_element("id", "words").send_keys("oh what a bang")
        driver.find_element("id", "predict").click()
        shown = see(driver, "Answer: loud")
        assert count(driver, "#outcome .track") == 2
        assert count(driver, "#outcome .track.chosen") == 1
        assert count(driver, "#timeline .frames img") == 7
        assert count(driver, "#timeline .wave") == 700
        assert count(driver, "#timeline .weights") == 2
        words = [item.text.split("\n")[0] for item in driver.find_elements("css selector", "#spoken li")]
        assert words == ["oh", "what", "a", "bang"]
        sizes = driver.execute_script(
            "return [...document.querySelectorAll('#timeline img')].map(e => e.naturalWidth)"
        )
        assert sizes == [128] * 7, "the page's policy lets its own pictures through"
        # A click at three quarters of the time axis: the player is there, and plays.
        from selenium.webdriver import ActionChains

        timeline = driver.find_element("id", "timeline")
        quarter = timeline.size["width"] // 4
        ActionChains(driver).move_to_element_with_offset(timeline, quarter, 0).click().perform()
        until(
            lambda: player_time(driver) > 0.74 * SECONDS,
            lambda: "the player does not move",
        )
        driver.execute_script("document.getElementById('player').pause()")
        timeline.send_keys("\ue011")  # Home
        until(
            lambda: readout(driver).startswith("0.0 s: video ×"),
            lambda: readout(driver),
        )
        for time_of, is_heavy in ((1.92, True), (0.72, False)):
            driver.execute_script(f"document.getElementById('player').currentTime = {time_of}")
            shown = until(
                lambda t=time_of: found if (found := readout(driver)).startswith(f"{t:.1f} s: ") else "",  # type: ignore[misc]
                lambda: readout(driver),
            )
            assert (float(shown.rpartition("audio ×")[2]) > 2) == is_heavy, "the burst has the weight"
        driver.execute_script("document.getElementById('player').currentTime = 1.92; window.scrollTo(0, 0)")
        driver.execute_script("document.activeElement.blur()")
        time.sleep(1)  # for the picture
        browser.save(driver, tmp_path / "serve.png")
        assert (tmp_path / "serve.png").stat().st_size < 200_000
        errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert errors == []
        assert files_below(temporary) == []


@in_a_browser
def test_a_bad_clip_is_one_line_in_a_browser(model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"this is no film " * 100)
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_100_000))
    limits = ("--max_megabytes", "1", "--max_seconds", "3")
    with served(model, tmp_path / "of", *limits) as (address, _, _), browser.chromium() as driver:
        driver.get(address)
        see(driver, "At most 3 s and 1 MB.")
        for path, told in {
            bad: "the clip is not a recording that can be read: choose a file",
            large: "large.mp4 has more than 1 MB: choose a shorter clip",
            film(tmp_path / "long.mp4", 5.0): "the clip is 5 s long, and at most 3 s are taken",
        }.items():
            driver.find_element("id", "file").send_keys(str(path))
            if path is not large:
                driver.find_element("id", "predict").click()
            see(driver, told)
        assert not driver.find_element("id", "answer").is_displayed()


@in_a_browser
def test_the_camera_and_the_microphone_are_recorded(model: Path, tmp_path: Path) -> None:
    with served(model, tmp_path / "of") as (address, _, temporary), browser.chromium(*FAKE_CAMERA) as driver:
        driver.get(address)
        see(driver, "calm, loud")
        for button, rows in (("record-video", 2), ("record-audio", 1)):
            driver.find_element("id", button).click()
            until(
                lambda: re.search(r"recording: ([2-9]|\d\d)", driver.find_element("id", "status").text),
                lambda: "nothing is recorded",
            )
            driver.find_element("id", "stop").click()
            see(driver, "recording.webm, ")
            driver.find_element("id", "predict").click()
            see(driver, "Answer: ")
            assert count(driver, "#timeline .weights") == rows
            see(driver, "Predicted without text: no words are given.")
            # The browser's recording has no length of its own; the player can be moved in it anyway.
            driver.find_element("id", "timeline").click()
            until(
                lambda: player_time(driver) > 0.9,
                lambda: "the player does not move",
            )
        assert files_below(temporary) == []


@in_a_browser
def test_a_foreign_page_cannot_use_it(tmp_path: Path) -> None:
    """A name of somebody else that leads to this machine; and a page of another address that sends a form."""
    model = save_model(tmp_path / "mine", ["text"])
    rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with served(model, tmp_path / "of") as (address, _, _), browser.chromium(rules) as driver:
        driver.get(address.replace("127.0.0.1", "evil.example"))
        see(driver, "this name is not an address of awtpn serve")
        sent = driver.execute_async_script(
            "const [address, done] = arguments, form = new FormData(); form.append('words', 'so glad');"
            "fetch(address, {method: 'POST', body: form}).then(() => done('read'), () => done('not read'))",
            f"{address}predict",
        )
        assert sent == "not read"


@in_a_browser
def test_a_model_of_text_takes_words_alone(tmp_path: Path) -> None:
    model = save_model(tmp_path / "mine", ["text"], LABELS)
    with served(model, tmp_path / "of") as (address, _, _), browser.chromium() as driver:
        driver.get(address)
        see(driver, "A model of text: recognition of several emotions at once.")
        assert not driver.find_element("id", "clip-part").is_displayed()
        driver.find_element("id", "words").send_keys("so <i>glad</i>")
        driver.find_element("id", "predict").click()
        shown = see(driver, "Answer: ")
        assert count(driver, "#spoken li") == 2
        assert "<i>glad</i>" in shown, "words are text, and no HTML"
        assert count(driver, "#outcome .track .mark") == 2
        assert not driver.find_element("id", "timeline-part").is_displayed()
