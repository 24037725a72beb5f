"""Checks a configuration with DeepSpeed's own classes before anything is loaded, and explains their refusals."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError, DtypeEnum
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from pydantic import ValidationError

from diffcse_scale.foundation.errors import InputError, brief, either, first_line, nearest, quoted

# what DeepSpeed's engine raises when it refuses a configuration
REFUSALS = (
    ValidationError,
    DeepSpeedConfigError,
    AssertionError,
    ValueError,
    NotImplementedError,
    ImportError,
    OSError,
)
CALLED = "DeepSpeed configuration"  # the name in messages if no file is known
# number formats, by all the names that DeepSpeed has for them
KINDS = {name for kind in (DtypeEnum.fp32, DtypeEnum.fp16, DtypeEnum.bf16) for name in kind._all_values}
BATCH = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}


def checked_by_deepspeed(config: Mapping[str, Any], called: str) -> dict[str, Any]:
    """Let DeepSpeed read each section as its engine would; return `config` with its ZeRO stage as a number.

    Args:
        config: batch sizes are ignored, because DeepSpeed checks them against the ranks, which need not exist here.
        called: the configuration's name in messages.

    Raises:
        InputError: DeepSpeed refuses a section.
    """
    sections = {key: value for key, value in config.items() if key not in BATCH}
    try:
        stage = _read(sections)
    except Exception as error:  # any exception is about the given configuration
        for section, value in sections.items():
            try:
                _read({section: value})
            except Exception as alone:
                if str(alone) == str(error):
                    raise _refusal(called, error, section) from None
        raise _refusal(called, error) from None
    zero = config.get("zero_optimization")
    return dict(config) if zero is None else {**config, "zero_optimization": {**zero, "stage": stage}}


@contextmanager
def refusals_explained() -> Iterator[None]:
    """Inside, where DeepSpeed's engine is made, its refusals of a configuration become an InputError."""
    try:
        yield
    except REFUSALS as error:
        raise _refusal(CALLED, error) from None
    except RuntimeError as error:
        if "Unable to JIT load" not in str(error):
            raise
        raise _refusal(CALLED, error) from None  # a requested kernel cannot be compiled here


def _read(sections: Mapping[str, Any]) -> int:
    """Let DeepSpeed read the sections; return the ZeRO stage."""
    for section in ("data_types", "torch_autocast"):
        for name, kind in sections.get(section, {}).items():
            if name.endswith("dtype") and kind is not None and kind not in KINDS:  # DeepSpeed notices only in use
                raise ValueError(f"{section}.{name} must be fp32, fp16 or bf16, not {quoted(kind)}")
    return int(DeepSpeedConfig({**sections, "train_micro_batch_size_per_gpu": 1}).zero_config.stage)


def _refusal(called: str, error: Exception, section: str = "") -> InputError:
    problems = [first_line(error)]
    if isinstance(error, ValidationError):
        problems = [_problem(problem, error.title, section) for problem in error.errors()]
    elif section and section not in problems[0]:
        problems = [f"{section}: {problems[0]}"]
    return InputError(f"{called}: {brief('; '.join(problems), 400).rstrip('.')} (DeepSpeed refuses it).")


def _problem(problem: Any, model: str, section: str) -> str:
    """Describe one of pydantic's problems, with the key's path from the top of the file."""
    path = list(map(str, problem["loc"]))
    if section and path[:1] != [section]:
        path.insert(0, section)
    if problem["type"] == "extra_forbidden":
        known = next(_names(kind) for kind in DeepSpeedConfigModel.__subclasses__() if kind.__name__ == model)
        return f"unknown key {'.'.join(path)}{nearest(path[-1], known)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "enum":  # DeepSpeed's has two names for stage 3
        message = f"input should be {either(list(dict.fromkeys(re.split(', | or ', problem['ctx']['expected']))))}"
    return f"{'.'.join(path)}: {message[:1].lower()}{message[1:]} (given: {quoted(problem.get('input'))})"


def _names(model: type[DeepSpeedConfigModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
