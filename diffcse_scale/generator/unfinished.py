"""The states that an interrupted pretraining continues from, in a folder beside its output.

OUTPUT.unfinished/
    lock             held by the process that trains
    facts.json       everything that the result depends on; only a training with the same facts continues
    step-00000120/   the state after a step: transformers' checkpoint, and the seconds that the training took so far.
                     It gets this name after all of it is on disk; then the previous state is removed
    partial/         a state that is being written
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.durable import apply_umask, make_folder, publish, remove_folder, write_durably
from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.foundation.locks import locked
from diffcse_scale.foundation.strict_json import to_json

LOCK, FACTS, PARTIAL, SECONDS = "lock", "facts.json", "partial", "seconds.json"
TEXT, PROCESSES = "text", "processes"  # the facts that are not options


class Unfinished:
    """The states of one pretraining.

    Args:
        output: the folder for its generator.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f"{output.name}.unfinished")
        self.partial = self.folder / PARTIAL

    @contextmanager
    def held(self, given: str) -> Iterator[None]:
        """Inside, no other process trains for this output. On exit a folder without a state is removed.

        Args:
            given: the output path as given by the user.

        Raises:
            InputError: another process trains for this output.
        """
        make_folder(self.folder)
        taken = f"Another process trains the generator of {given}; wait for it, or choose another output."
        with locked(self.folder / LOCK, taken):
            remove_folder(self.partial)  # may be left from a killed process
            try:
                yield
            finally:
                if self.newest() is None:
                    self.remove()

    def check(self, facts: dict[str, Any]) -> None:
        """Check that an existing state belongs to the same training.

        Args:
            facts: the facts of the training, or those that are known so far.

        Raises:
            InputError: the state belongs to another training.
        """
        if self.newest() is None:
            return
        there = json.loads((self.folder / FACTS).read_text(encoding="utf-8"))
        here = json.loads(to_json(facts))
        names = [name for name, value in here.items() if there.get(name) != value]
        if different := [_difference(name, there.get(name), here[name]) for name in names]:
            raise InputError(
                f"{self.folder} holds an interrupted training with other settings ({'; '.join(different)}); give "
                "those settings to continue it, or remove that folder to start over."
            )

    def newest(self) -> Path | None:
        """The newest state, if there is one."""
        states = (entry for entry in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,}", entry.name))
        return max(states, default=None, key=lambda state: int(state.name.removeprefix("step-")))

    def keep(self, fresh: Path, step: int, seconds: float, facts: dict[str, Any]) -> None:
        """Store the state after `step`, which is in `fresh`, as the newest and only one."""
        write_durably(to_json(facts, indent=1), self.folder / FACTS)
        (fresh / SECONDS).write_text(to_json(seconds), encoding="utf-8")
        apply_umask(fresh)
        before = self.newest()
        publish(fresh, self.folder / f"step-{step:08d}")
        if before is not None:
            remove_folder(before)

    def seconds(self) -> float:
        """Seconds that the training took until the newest state."""
        state = self.newest()
        return 0.0 if state is None else float(json.loads((state / SECONDS).read_text(encoding="utf-8")))

    def remove(self) -> None:
        """Remove everything: the generator is written, or there is no state to continue from."""
        remove_folder(self.folder)


def _difference(name: str, there: Any, here: Any) -> str:
    """A fact's value in the interrupted training and its new value, for a message."""
    if name == TEXT:
        return "another text or tokenizer"
    label = name if name == PROCESSES else f"--{name.replace('_', '-')}"
    return f"{label} {quoted(there)}, not {quoted(here)}"
