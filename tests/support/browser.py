"""A page in a real browser: its document after its scripts have run, its console, and what it asked the network for."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ("no-sandbox", "disable-gpu", "disable-background-networking", "disable-component-update", "disable-sync")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


def opened(page: str, folder: Path, *options: str) -> tuple[str, list[str], list[str]]:
    """The document after its script has run, what the console says, and the addresses that were asked for.

    Args:
        page: its address.
        folder: for what the browser writes.
        options: of Chromium, without the two hyphens.
    """
    log = folder / "network.json"
    command = [CHROMIUM, "--headless", *(f"--{option}" for option in (*QUIET, *options)), "--no-first-run"]
    command += ["--dump-dom", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
    done = subprocess.run([*command, f"--log-net-log={log}", page], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    network = json.loads(log.read_text())
    requests = [event["params"] for event in network["events"] if "initiator" in event.get("params", {})]
    # what the browser itself asks the network for has no origin
    return done.stdout, console, [one["url"] for one in requests if one["initiator"] != "not an origin"]
