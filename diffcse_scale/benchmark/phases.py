"""Times the phases of a training step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import record_function

from diffcse_scale.distributed import collectives

PHASES = (
    "data",
    "generator",
    "encoder",
    "discriminator",
    "loss",
    "backward",
    "communication",
    "optimizer",
    "other",
)


class Phases:
    """Seconds by phase. In nested phases only the innermost counts.

    On a GPU every boundary waits for the device, so work counts for the phase that launched it. Such a step takes
    longer than an undisturbed one; to time the latter, set `waits` to False. Asynchronous work on a CPU (a collective
    that is waited for later) counts where it is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.waits = True
        self._open: list[str] = []
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as phase `name`. Between steps nothing counts."""
        with record_function(name):
            if not self._open:
                yield
                return
            self._switch()
            self._open.append(name)
            try:
                yield
            finally:
                self._switch()
                self._open.pop()

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Count every call of `owner.attribute` as phase `name`."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **options)

        setattr(owner, attribute, timed)

    def wrap_collectives(self) -> None:
        """Count all collectives of this process as communication from now on, wherever they are called."""
        for module, name in collectives():
            self.wrap(module, name, "communication")

    def start(self) -> None:
        """Begin a step."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open = ["other"]
        self._synchronize()
        self._since = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Wait for the device and end the step. Returns its seconds by phase."""
        self._synchronize()
        self._switch()
        self._open = []
        return self.seconds

    def _switch(self) -> None:
        if self.waits:
            self._synchronize()
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
