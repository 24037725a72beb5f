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
    """Seconds by phase; of phases inside others, only the innermost counts.

    On a GPU every boundary waits for the device, so that a phase's work is counted where it was asked for; what such a
    step takes in all is therefore longer than an undisturbed one, for which `waits` is set to False. What runs
    asynchronously on a CPU (a collective that is waited for later) counts where it is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.waits = True
        self._open: list[str] = []
        self._since = 0.0
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time within counts as `name`'s; between steps nothing counts."""
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
        """Every call of `owner.attribute` counts as `name`."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.phase(name):
                return function(*arguments, **options)

        setattr(owner, attribute, timed)

    def wrap_collectives(self) -> None:
        """What ranks exchange, wherever it is called, in this process from now on."""
        for module, name in collectives():
            self.wrap(module, name, "communication")

    def start(self) -> None:
        """A step begins."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._open = ["other"]
        self._synchronize()
        self._since = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """The step's seconds by phase, once the device is done."""
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
