"""How long a pretraining takes: a line after its first steps, the time left in the bar and in the log lines."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from diffcse_scale.foundation.working import clock

WARM, ENOUGH = 2, 10  # steps that are not counted, and after which there is an estimate


class Pace:
    """The seconds of a training, and those that are left.

    A step's sentences are of about one length, and the longest come first: time is counted by token, not by step.

    Args:
        tokens: of a usual step.
        spent: seconds before an interruption.
    """

    def __init__(self, tokens: float, spent: float = 0.0) -> None:
        self._usual, self._before = tokens, spent
        self._begun = time.monotonic()
        self._steps = self._tokens = 0
        self._warm = self._begun

    def add(self, tokens: int) -> None:
        """A step with so many tokens begins."""
        if self._steps == WARM:
            self._warm, self._tokens = time.monotonic(), 0
        self._steps += 1
        self._tokens += tokens

    def seconds(self) -> float:
        """Since the training began, without interruptions."""
        return self._before + time.monotonic() - self._begun

    def left(self, steps: int) -> float | None:
        """Seconds that so many more steps take; None until that can be known. To be asked at the end of a step."""
        if self._steps < ENOUGH:
            return None
        return steps * self._usual * (time.monotonic() - self._warm) / self._tokens

    def estimate(self, steps: int) -> str | None:
        """Once, as soon as it can be known: how long so many more steps take, and when they end."""
        left = self.left(steps)
        if left is None or self._steps != ENOUGH:
            return None
        end = time.localtime(time.time() + left)
        when = time.strftime("%H:%M" if left < 72_000 else "%A %d %B, %H:%M", end)
        return f"The {steps:,} remaining steps take about {in_words(left)} here; the end is at about {when}."


def in_words(seconds: float) -> str:
    """A duration that is roughly known.

    >>> in_words(7810), in_words(1499), in_words(42)
    ('2 h 10 min', '25 min', '42 s')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Progress(TrainerCallback):
    """A bar on a terminal, the estimate, and a line with the loss at each point of its curve; on the main rank."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        hidden = None if state.is_world_process_zero else True  # None: wherever no terminal is
        style = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}"
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, disable=hidden, bar_format=style)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps = state.max_steps - state.global_step
        if (left := self._pace.left(steps)) is not None:
            self._bar.set_postfix_str(f"{clock(left)} left", refresh=False)
        self._bar.update()
        if state.is_world_process_zero and steps and (estimate := self._pace.estimate(steps)):
            self._tell(estimate)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            left = self._pace.left(state.max_steps - state.global_step)
            rest = "" if left is None else f"  {clock(left):>8} left"
            place = f"{state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
            self._tell(f"step {place}  loss {logs['loss']:7.4f}{rest}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()

    @staticmethod
    def _tell(line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
