"""The page in a real browser: its script runs, nothing is complained about, nothing is asked of the network."""

from __future__ import annotations

import json
import re
from html import escape

import pytest

from diffcse_scale.report import report
from tests.support.browser import needs_browser, opened


@pytest.mark.slow
@needs_browser
def test_the_page_runs_without_a_word_and_without_the_network(two_runs, tmp_path):
    page = report(two_runs, tmp_path / "report.html")
    document, console, asked = opened(page.as_uri(), tmp_path)
    assert (console, asked) == ([], [])
    assert document.count("<button") == document.count('aria-pressed="true"') == 2
    assert not re.search(r"<button[^>]* disabled", document)  # the script has run
    assert re.search(r"<button[^>]* disabled", page.read_text())


@pytest.mark.slow
@needs_browser
def test_a_page_with_a_mistake_would_be_noticed(two_runs, tmp_path):
    page = report(two_runs[:1], tmp_path / "report.html", models=False)
    bad = "<script>nothing.there</script><img src='http://127.0.0.1:9/x.png'></body>"
    page.write_text(page.read_text().replace("</body>", bad))
    _, console, asked = opened(page.as_uri(), tmp_path)
    assert any("nothing is not defined" in line for line in console)
    # refused before it is asked for
    assert any("Content Security Policy" in line for line in console) and asked == []
    page.write_text(page.read_text().replace('http-equiv="Content-Security-Policy"', ""))
    assert opened(page.as_uri(), tmp_path)[2] == ["http://127.0.0.1:9/x.png"]


# what reaches out of its box or is cut by one; in a region of class "scroll" it can be reached, and a shadow says so
LOOK = """
<script>
addEventListener("load", () => {
  const told = [];
  for (const element of document.querySelectorAll("body *")) {
    if (element.closest(".visually-hidden, [hidden]") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element), name = element.tagName + "." + element.getAttribute("class");
    const scrolls = element.matches(".scroll") && style.backgroundImage.includes("gradient");
    if (element.scrollWidth > element.clientWidth + 1 && style.overflowX !== "visible" && !scrolls) told.push(name);
    if (!element.closest(".scroll, pre") && element.getBoundingClientRect().right > innerWidth + 1) told.push(name);
    if (element.matches(".dots svg") && element.getBoundingClientRect().right > innerWidth + 1) told.push(name);
  }
  parent.postMessage(JSON.stringify([innerWidth, ...new Set(told)]), "*");
});
</script></body>"""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_its_box_or_cut(two_runs, tmp_path, width):
    page = report(two_runs, tmp_path / "report.html").read_text().replace("</body>", LOOK)
    frame = tmp_path / "frame.html"
    hear = "<script>addEventListener('message', event => document.body.append('FOUND' + event.data + 'END'))</script>"
    frame.write_text(f"<body>{hear}<iframe style='width:{width}px;border:0' srcdoc='{escape(page)}'></iframe></body>")
    document, _, _ = opened(frame.as_uri(), tmp_path)
    assert json.loads(re.search(r"FOUND(\[.*?\])END", document)[1]) == [width]
