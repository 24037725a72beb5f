"""Hooks of the training loop: their base class, and how a user adds one by name.

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

from diffcse_scale.foundation.errors import InputError, nearest, quoted

if TYPE_CHECKING:
    from diffcse_scale.training.trainer import Trainer


class Hook:
    """Methods that the training loop calls. By default each does nothing; a hook overrides those that it needs.

    Every rank creates its own hook, without arguments, and all ranks call the same method at the same point. So a hook
    may use collectives if it does so on every rank. It must write files on the main rank only
    (`diffcse_scale.distributed.is_main`). An exception in a hook ends the run.

    A hook may read these attributes of `trainer`: `step` (steps done), `plan` (the batch; `plan.steps` is the length of
    the run), `recipe`, `run` (the run folder is `run.path`), `model` (the networks; `model.encoder` is what is kept),
    `engine` (DeepSpeed's), `learning_rate` and `gradient_norm` (of the last step), and `best.facts` (`step` and
    `dev_spearman` of the best encoder so far).

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
        """Called before the first step of `trainer`, also after a resume."""

    def after_step(self, trainer: Trainer) -> None:
        """Called after each step of `trainer`, also a skipped one. Waiting for the device here slows training down."""

    def at_pause(self, trainer: Trainer) -> None:
        """Called after `after_step` of all hooks of `trainer`. Long work belongs here: the rates do not count it."""

    def on_row(self, trainer: Trainer, row: dict[str, Any]) -> None:
        """Called after a row of `metrics.jsonl` was written.

        Args:
            trainer: the loop that wrote it.
            row: floats by name: means since the row before, or a score of the development set. A value may be NaN, or
                None if there was nothing to count.
        """

    def on_end(self, trainer: Trainer, result: dict[str, Any]) -> None:
        """Called after the last step, before `model/` and `result.json` are written.

        Args:
            trainer: the loop that ends.
            result: the future content of `result.json`; a hook may add anything that JSON can hold.
        """


MOMENTS = [name for name in vars(Hook) if not name.startswith("_")]
PREFIXES = tuple({name.partition("_")[0] + "_" for name in MOMENTS})


def load_hooks(names: Iterable[str]) -> list[Hook]:
    """Create a hook of each class, named as `package.module:Class`. Modules of the working directory are found too.

    Raises:
        InputError: the module cannot be imported, it has no class of that name, the class is not a hook, a method is
            named like those of `Hook` but is none of them, or the class cannot be created without arguments.
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
    except Exception as error:  # a user's file may raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"Hook {name} cannot be imported ({why}); fix {module}, or set PYTHONPATH.") from None
    if not (isinstance(found, type) and issubclass(found, Hook)):
        what = f"has no {attribute}" if found is None else f"has a {attribute} that is no subclass of Hook"
        raise InputError(f"Hook {name} cannot be used: {module} {what} (from diffcse_scale.training import Hook).")
    for method in dir(found):
        if method.startswith(PREFIXES) and method not in MOMENTS and callable(getattr(found, method)):
            why = f"{method}{nearest(method, MOMENTS)}, which training does not call; it calls {', '.join(MOMENTS)}"
            raise InputError(f"Hook {name} has a method {why}; rename it.")
    try:
        return found()
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"Hook {name} cannot be created without arguments ({why}).") from None
