"""Peak anonymous memory of this process, sampled from outside it, so that no lock of Python hides a moment."""

from __future__ import annotations

import os
import subprocess
import sys

_SAMPLER = """
import select, sys
def anonymous():
    with open("/proc/" + sys.argv[1] + "/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return 1024 * sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))
peak = 0
while True:
    now = anonymous()
    peak = max(peak, now)
    if select.select([sys.stdin], [], [], 0.001)[0]:
        if not sys.stdin.readline():
            break
        print(peak, now, flush=True)
        peak = now
"""


class PeakMemory:
    """What this process holds more than when the object was made, in bytes: anonymous and shared, no mapped files."""

    def __init__(self) -> None:
        command = [sys.executable, "-S", "-c", _SAMPLER, str(os.getpid())]
        self._sampler = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._before = self._read()[1]

    def read(self) -> tuple[int, int]:
        """(the most since the last reading, now)."""
        peak, now = self._read()
        return peak - self._before, now - self._before

    def close(self) -> None:
        """End the sampler."""
        self._sampler.communicate()

    def _read(self) -> tuple[int, int]:
        assert self._sampler.stdin is not None and self._sampler.stdout is not None
        print(file=self._sampler.stdin, flush=True)
        peak, now = self._sampler.stdout.readline().split()
        return int(peak), int(now)
