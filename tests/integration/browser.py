"""TensorBoard in a headless Chromium: what its pages show, and pictures of them.

    python tests/integration/browser.py RUNS OUT       # one PNG per page of the runs in RUNS

Needs Debian's `chromium` and `chromium-driver` and PyPI's `selenium`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import LIMIT, free_port, launched

T = TypeVar("T")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --disable-dev-shm-usage"
)
WIDTH, HEIGHT = 1900, 1500

# TensorBoard's older pages are web components, whose elements lie in nested shadow roots, or in a frame.
DEEP = """
const found = [];
const walk = root => {
  for (const element of root.querySelectorAll('*')) {
    found.push(element);
    if (element.shadowRoot) walk(element.shadowRoot);
    if (element.tagName === 'IFRAME' && element.contentDocument) walk(element.contentDocument);
  }
};
walk(document);
"""
TEXT = (
    DEEP
    + """
const words = [];
for (const element of found)
  for (const node of element.childNodes)
    if (node.nodeType === 3 && node.data.trim() && !/^(STYLE|SCRIPT)$/.test(element.tagName))
      words.push(node.data.trim());
return words.join('\\n');
"""
)
IMAGES = (
    DEEP
    + """
return found.filter(e => e.tagName === 'IMG' && e.src.includes('plugin/images'))
            .map(e => e.complete ? [e.naturalWidth, e.naturalHeight] : [0, 0]);
"""
)
# Makes room: the settings are put away, and the table below each chart.
TIDY = """
const all = selector => [...document.querySelectorAll(selector)];
const box = all('mat-checkbox').find(e => /step selection/.test(e.textContent));
if (box && box.querySelector('input').checked) box.querySelector('input').click();
document.querySelector('button[aria-label="Toggle settings side pane"]').click();
"""
COLOUR_BY_CLASS = (
    DEEP
    + """
const panel = found.find(e => e.tagName === 'VZ-PROJECTOR-DATA-PANEL');
panel.selectedColorOptionName = 'shown_as';
panel.selectedLabelOption = 'label';
"""
)
ACTUAL_SIZE = (
    DEEP
    + """
found.find(e => e.tagName === 'PAPER-CHECKBOX' && /actual/.test(e.textContent)).click();
"""
)
SCALARS = "loss/(total|ce)|val/(w-F1|UA)"
# For pictures of them: address, what to wait for, what to do then, width and height of the window.
PAGES = {
    "timeseries": (f"timeseries?tagFilter={SCALARS}", ["/total", "/UA"], TIDY, (1250, 1000)),
    "images": ("images&tagFilter=val/|prototypes/", ["val/confusion"], ACTUAL_SIZE, (1900, 1800)),
    "projector": ("projector", ["Total variance described"], COLOUR_BY_CLASS, (1500, 900)),
    "hparams": ("hparams", ["model.awm"], "", (1500, 800)),
}


def missing() -> str | None:
    """What of this machine lacks, or None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "selenium is not installed"
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"no {' and no '.join(absent)} (Debian: chromium, chromium-driver)" if absent else None


@contextlib.contextmanager
def tensorboard(runs: Path, log: Path) -> Iterator[str]:
    """A TensorBoard of the runs in a folder, one of which at least has embeddings; gives its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", str(port)]
    with launched([*command, "--host", "127.0.0.1"], log) as process:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                # The projector's data are found last.
                return bool(fetch(address, "data/plugins_listing")["projector"]["enabled"])
            return False

        until(ready, log.read_text)
        yield address


def fetch(address: str, path: str) -> Any:
    """What TensorBoard answers: JSON, or bytes where it is none."""
    with urllib.request.urlopen(f"{address}/{path}", timeout=LIMIT) as answer:
        body = answer.read()
        return json.loads(body) if "json" in answer.headers["Content-Type"] else body


@contextlib.contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """A driven browser without a window, with a profile of its own; `flags` are added to FLAGS."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (*FLAGS.split(), *flags, f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def visit(driver: Any, address: str, page: str, words: Sequence[str]) -> str:
    """Open a page ("images", "timeseries?tagFilter=loss") and wait until it shows all `words`; its text.

    Raises:
        AssertionError: it does not.
    """
    driver.get("about:blank")  # another page of the same address would only change its fragment
    name, _, query = page.partition("?")
    driver.get(f"{address}/?darkMode=false&smoothing=0.8&{quote(query, '=')}#{name}")
    return until(
        lambda: text if all(word in (text := driver.execute_script(TEXT)) for word in words) else "",
        lambda: f"{page} shows not all of {words}:\n{driver.execute_script(TEXT)[-2000:]}",
    )


def images(driver: Any) -> list[list[int]]:
    """Width and height of each picture of ours on the page; 0 while it loads."""
    return driver.execute_script(IMAGES)  # type: ignore[no-any-return]


def until(found: Callable[[], T], otherwise: Callable[[], str]) -> T:
    """What `found` gives once that is something.

    Raises:
        AssertionError: it takes too long; with what `otherwise` says.
    """
    deadline = time.monotonic() + LIMIT
    while not (result := found()):
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.2)
    return result


def save(driver: Any, out: Path, colours: int = 128) -> None:
    """What the window shows, as a small PNG."""
    from PIL import Image

    driver.save_screenshot(str(out))
    Image.open(out).convert("RGB").quantize(colours).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pages", nargs="+", choices=list(PAGES), default=list(PAGES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "tensorboard.log"
    with tensorboard(options.runs, log) as address, chromium() as driver:
        for name in options.pages:
            page, words, script, size = PAGES[name]
            driver.set_window_size(*size)
            visit(driver, address, page, words)
            time.sleep(5)  # for animations, and what loads without words
            driver.execute_script(script)
            time.sleep(8)
            save(driver, options.out / f"tensorboard-{name}.png")
    log.unlink()


if __name__ == "__main__":
    main()
