"""A person at a terminal: an interactive bash behind a pseudo-terminal, with job control, and one who types."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

PROMPT = "what next? "
MARK = "TYPED_AT"
LOOK = 0.05  # seconds
ROWS, COLUMNS = 24, 80


class Terminal:
    """None of the processes that it starts outlives the block.

    Args:
        folder: where one types.
    """

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.mark, self._said, self._open = uuid.uuid4().hex, b"", True
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._shell = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "--noediting", "-i"],
            cwd=folder,
            env={**environment, MARK: self.mark, "PS1": PROMPT, "TERM": "dumb"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for(lambda: PROMPT in self.said(), 20)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        for process in (*self.processes(), self._shell):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        self._shell.wait()
        self.hang_up()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # nobody has it open any more
            while self._open:
                if select.select([self._master], [], [], LOOK)[0]:
                    self._said += os.read(self._master, 4096)
        os.close(self._master)

    def said(self) -> str:
        """All that stands on the screen."""
        return self._said.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        """Press them."""
        os.write(self._master, keys.encode())

    def run(self, line: str) -> None:
        """Start it in the foreground."""
        self._said = b""
        self.type(line + "\n")

    def exit_code(self) -> int:
        """Of the last command, which has ended."""
        self.type("echo it was $? then\n")
        self.wait_for(lambda: re.search(r"it was \d+ then", self.said()), 20)
        return int(re.findall(r"it was (\d+) then", self.said())[-1])

    def hang_up(self) -> None:
        """Close the window."""
        self._open = False
        self._reader.join()

    def processes(self) -> list[psutil.Process]:
        """Those that live and that were started here, without the shell."""
        return [process for process in psutil.process_iter() if process.pid != self._shell.pid and self._own(process)]

    def _own(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self.mark
        except (psutil.Error, OSError):
            return False

    def wait_for(self, condition: Callable[[], object], seconds: float) -> None:
        """Wait until `condition` holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.said()
            time.sleep(LOOK)
