"""The states that an interrupted pretraining continues from, in a folder beside its output.

OUTPUT.unfinished/
    lock             held by the process that trains
    facts.json       what the result is a function of; only the same training goes on
    step-00000120/   the state after a step: transformers' checkpoint, and the seconds that it took to get there. It got
                     this name when the disk had all of it, and the one before went
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
TEXT, PROCESSES = "text", "processes"  # the facts that are no options


class Unfinished:
    """The states of one pretraining.

    Args:
        output: where its generator will be.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f"{output.name}.unfinished")
        self.partial = self.folder / PARTIAL

    @contextmanager
    def held(self, given: str) -> Iterator[None]:
        """Inside, no other process trains for this output; what is left without a state goes in the end.

        Args:
            given: the output, as the user calls it.

        Raises:
            InputError: another one does.
        """
        make_folder(self.folder)
        taken = f"Another process trains the generator of {given}; wait for it, or choose another output."
        with locked(self.folder / LOCK, taken):
            remove_folder(self.partial)  # of a process that was killed
            try:
                yield
            finally:
                if self.newest() is None:
                    self.remove()

    def check(self, facts: dict[str, Any]) -> None:
        """See to it that what is there is of the same training.

        Args:
            facts: those of it, or as many as are known by now.

        Raises:
            InputError: it is of another one.
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
        """Make the state after `step`, which lies in `fresh`, the newest and only one."""
        write_durably(to_json(facts, indent=1), self.folder / FACTS)
        (fresh / SECONDS).write_text(to_json(seconds), encoding="utf-8")
        apply_umask(fresh)
        before = self.newest()
        publish(fresh, self.folder / f"step-{step:08d}")
        if before is not None:
            remove_folder(before)

    def seconds(self) -> float:
        """That the training has taken until the newest state."""
        state = self.newest()
        return 0.0 if state is None else float(json.loads((state / SECONDS).read_text(encoding="utf-8")))

    def remove(self) -> None:
        """The generator is written, or there is nothing to go on from."""
        remove_folder(self.folder)


def _difference(name: str, there: Any, here: Any) -> str:
    """What a fact was in the training that was interrupted, for a message."""
    if name == TEXT:
        return "another text or tokenizer"
    label = name if name == PROCESSES else f"--{name.replace('_', '-')}"
    return f"{label} {quoted(there)}, not {quoted(here)}"
