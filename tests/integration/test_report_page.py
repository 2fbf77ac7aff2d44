"""The report in a browser: charts are drawn, and a page made of hostile names runs nothing."""

from __future__ import annotations

from pathlib import Path

import browser
import pytest
from report_support import HOSTILE, make_hostile_labels, make_hostile_run, make_hostile_values

from awtpn.report.write import write_report
from shards.safe_io.printable import printable

DRAWN = "return [...document.querySelectorAll('svg')].map(e => e.getBoundingClientRect().height)"
POLICY = "return document.querySelector('meta[http-equiv=Content-Security-Policy]').content"


@pytest.mark.parametrize("task_type", ["classification", "regression", "multilabel"])
def test_a_page_of_hostile_names_runs_nothing(
    task_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacking := browser.missing():
        pytest.skip(lacking)
    # The intervals of the cards, and the charts of the task; beside them seven curves of losses.
    if task_type == "classification":
        make_hostile_run(tmp_path, monkeypatch)
        drawn = 4 + 1 + 1  # the matrix and the calibration
    elif task_type == "regression":
        make_hostile_values(tmp_path)
        drawn = 3 + 3 * 3
    else:
        make_hostile_labels(tmp_path)
        drawn = 6 + 3 * 2
    [page] = write_report([tmp_path], tmp_path / "report.html", None)
    forgotten = tmp_path / "forgotten.html"
    script = "<script>document.title = 'it ran'</script><img src=x onerror=\"document.title = 'it ran'\">"
    forgotten.write_text(page.read_text().replace("<h1>", f"{script}<h1>", 1))
    with browser.chromium() as driver:
        driver.set_window_size(1180, 1400)
        driver.get(page.as_uri())
        heights = driver.execute_script(DRAWN)
        assert len(heights) == drawn + 7
        assert min(heights) >= 10
        assert "default-src 'none'" in driver.execute_script(POLICY)
        shown = driver.find_element("tag name", "body").text
        assert all(printable(name) in shown for name in HOSTILE)
        assert driver.execute_script("return document.querySelectorAll('script, img').length") == 0
        driver.get(forgotten.as_uri())
        assert driver.execute_script("return document.querySelectorAll('script, img').length") == 2
        assert driver.title.startswith("AWTPN on"), "the page's policy stops even what nobody escaped"
