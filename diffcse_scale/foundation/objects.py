"""Reads the program's own JSON and YAML files, which may have been truncated, edited or replaced."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from diffcse_scale.foundation.errors import InputError, disk_errors_at, first_line, system_reason
from diffcse_scale.foundation.unique_keys import load_yaml

LONGEST_NUMBER = 18  # digits of an integer that every reader can hold


def parse_json(text: str) -> Any:
    """Parse JSON. Numbers that are not finite, which standard JSON does not have, become None.

    Raises:
        ValueError: the text is malformed or nested too deeply.
    """
    try:
        return json.loads(
            text,
            parse_constant=lambda _: None,
            parse_float=_finite,
            parse_int=lambda digits: int(digits) if len(digits) <= LONGEST_NUMBER else _finite(digits),
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_object(file: Path, schema: type[BaseModel] | None = None) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        schema: validates its values.

    Raises:
        InputError: the file holds no object, or its values do not fit `schema`.
        OSError: the disk or the permissions are at fault, not the file.
    """
    return _read(file, schema, parse_json)


def read_yaml_object(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises the errors of `read_object`."""
    return _read(file, None, load_yaml)


def _read(file: Path, schema: type[BaseModel] | None, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        with disk_errors_at(file):
            text = file.read_text(encoding="utf-8")
        content = parse(text)
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        if schema is not None:
            schema.model_validate(content)
    except (FileNotFoundError, IsADirectoryError) as error:
        reason = system_reason(error)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValidationError as error:
        problem = error.errors()[0]
        reason = f"{'.'.join(map(str, problem['loc']))}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    except (ValueError, yaml.YAMLError) as error:
        reason = first_line(error).rstrip(".")
    else:
        return content
    raise InputError(f"{file} is not what this program writes ({reason}); delete or restore it.") from None


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None
