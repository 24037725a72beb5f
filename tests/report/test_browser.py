"""The page in a real browser: its script runs, nothing is complained about, nothing is asked of the network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from diffcse_scale.report import report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync")


def opened(page: Path, folder: Path) -> tuple[str, list[str], list[str]]:
    """The document after its script has run, what the console says, and the addresses that were asked for."""
    log = folder / "network.json"
    command = [CHROMIUM, "--headless", *(f"--{option}" for option in QUIET), "--no-first-run", "--dump-dom"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", f"--log-net-log={log}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    network = json.loads(log.read_text())
    requests = [event["params"] for event in network["events"] if "initiator" in event.get("params", {})]
    # what the browser itself asks the network for has no origin
    return done.stdout, console, [one["url"] for one in requests if one["initiator"] != "not an origin"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_runs_without_a_word_and_without_the_network(two_runs, tmp_path):
    page = report(two_runs, tmp_path / "report.html")
    document, console, asked = opened(page, tmp_path)
    assert (console, asked) == ([], [])
    assert document.count("<button") == document.count('aria-pressed="true"') == 2
    assert not re.search(r"<button[^>]* disabled", document)  # the script has run
    assert re.search(r"<button[^>]* disabled", page.read_text())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_page_with_a_mistake_would_be_noticed(two_runs, tmp_path):
    page = report(two_runs[:1], tmp_path / "report.html", models=False)
    bad = "<script>nothing.there</script><img src='http://127.0.0.1:9/x.png'></body>"
    page.write_text(page.read_text().replace("</body>", bad))
    _, console, asked = opened(page, tmp_path)
    assert any("nothing is not defined" in line for line in console)
    # refused before it is asked for
    assert any("Content Security Policy" in line for line in console) and asked == []
    page.write_text(page.read_text().replace('http-equiv="Content-Security-Policy"', ""))
    assert opened(page, tmp_path)[2] == ["http://127.0.0.1:9/x.png"]
