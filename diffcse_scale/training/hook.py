"""What attaches to the training loop: the base class, and how a user adds one by name.

# noise.py
from diffcse_scale.training import Hook

class Tell(Hook):
    def on_row(self, trainer, row):
        print(trainer.step, row.get("loss"))

diffcse-scale train --hook noise:Tell
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffcse_scale.foundation.errors import InputError, quoted

if TYPE_CHECKING:
    from diffcse_scale.training.trainer import Trainer


class Hook:
    """Called while a run trains. Each method does nothing; a hook overrides those that it needs.

    Every rank has one, made without arguments, and all call the same method at the same moment: a hook may exchange
    with other ranks if all do so alike, and writes files on the main rank only (`diffcse_scale.distributed.is_main`).
    What it raises ends the run. It may read of `trainer`: `step` (steps done), `plan` (`plan.steps` in all, the batch),
    `recipe`, `run` (the folder, `run.path`), `model` (the networks; `model.encoder` is what is kept), `engine`
    (DeepSpeed's), `learning_rate` and `gradient_norm` (of the last step), `best.facts` (`step` and `dev_spearman` of
    the best encoder so far).

    Example:
        >>> from diffcse_scale.training import Hook
        >>> class LargestGradient(Hook):
        ...     largest = 0.0
        ...
        ...     def on_row(self, trainer, row):
        ...         self.largest = max(self.largest, row.get("gradient_norm", 0.0))
        >>> hook = LargestGradient()  # as training makes it, from `--hook MODULE:LargestGradient`
        >>> for norm in (0.5, 2.0, 1.0):
        ...     hook.on_row(None, {"gradient_norm": norm})
        >>> hook.largest
        2.0
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of `trainer`, and before the first after a resume."""

    def after_step(self, trainer: Trainer) -> None:
        """A step of `trainer` is done, or skipped. What waits for the device here makes training slower."""

    def at_pause(self, trainer: Trainer) -> None:
        """After `after_step` of all of `trainer`'s hooks. The clock of the rates stands still, for what takes long."""

    def on_row(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """A row of `metrics.jsonl` was written: means since the row before, or a score of the development set.

        Args:
            trainer: the loop that wrote it.
            row: floats by name; NaN, or None where there was nothing to count, may be among them.
        """

    def on_end(self, trainer: Trainer, result: dict[str, Any]) -> None:
        """The last step is done; `model/` and `result.json` are not yet written.

        Args:
            trainer: the loop that ends.
            result: what `result.json` is going to say; a hook may add what JSON can hold.
        """


def load_hooks(names: Iterable[str]) -> list[Hook]:
    """A hook of each class that is named as `package.module:Class`; modules of the working directory count.

    Raises:
        InputError: a module that cannot be imported, no class in it of that name, no hook, or one that wants arguments.
    """
    return [_load(name) for name in names]


def _load(name: str) -> Hook:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise InputError(f"Hook {quoted(name)} names no class; write it as package.module:Class.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(import_module(module), attribute, None)
    except Exception as error:  # a user's file may fail in any way
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"Hook {name} cannot be imported ({why}); fix {module}, or set PYTHONPATH.") from None
    if not (isinstance(found, type) and issubclass(found, Hook)):
        what = f"has no {attribute}" if found is None else f"has a {attribute} that is no subclass of Hook"
        raise InputError(f"Hook {name} cannot be used: {module} {what} (from diffcse_scale.training import Hook).")
    try:
        return found()
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"Hook {name} cannot be created without arguments ({why}).") from None
