"""How long a pretraining takes: an estimate after the first steps, and the remaining time in bar and log lines."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from diffcse_scale.foundation.working import clock

WARM, ENOUGH = 2, 10  # warm-up steps that do not count, and steps before the first estimate


class Pace:
    """The seconds that a training has taken, and those that are left.

    Time is counted per token and not per step, because a step's sentences have similar lengths and the longest come
    first.

    Args:
        tokens: tokens of an average step.
        spent: seconds before an interruption.
    """

    def __init__(self, tokens: float, spent: float = 0.0) -> None:
        self._usual, self._before = tokens, spent
        self._begun = time.monotonic()
        self._steps = self._tokens = 0
        self._warm = self._begun

    def add(self, tokens: int) -> None:
        """Count a step with `tokens` tokens. Call it when the step begins."""
        if self._steps == WARM:
            self._warm, self._tokens = time.monotonic(), 0
        self._steps += 1
        self._tokens += tokens

    def seconds(self) -> float:
        """Seconds since the training began, without interruptions."""
        return self._before + time.monotonic() - self._begun

    def left(self, steps: int) -> float | None:
        """Estimated seconds of `steps` more steps; None in the first steps. Call it at the end of a step."""
        if self._steps < ENOUGH:
            return None
        return steps * self._usual * (time.monotonic() - self._warm) / self._tokens

    def estimate(self, steps: int) -> str | None:
        """A sentence, once, after the first steps: how long `steps` more steps take, and when they end."""
        left = self.left(steps)
        if left is None or self._steps != ENOUGH:
            return None
        end = time.localtime(time.time() + left)
        when = time.strftime("%H:%M" if left < 72_000 else "%A %d %B, %H:%M", end)
        return f"The {steps:,} remaining steps take about {in_words(left)} here; the end is at about {when}."


def in_words(seconds: float) -> str:
    """An approximate duration in words.

    >>> in_words(7810), in_words(1499), in_words(42)
    ('2 h 10 min', '25 min', '42 s')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Progress(TrainerCallback):
    """On the main rank: a bar on a terminal, the estimate, and a line for each point of the loss curve."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        hidden = None if state.is_world_process_zero else True  # None: hidden unless on a terminal
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
