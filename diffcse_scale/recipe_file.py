"""Recipes as files: reading one, overriding its fields, explaining mistakes, and writing one with its meaning."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from diffcse_scale.foundation.errors import InputError, nearest, shown
from diffcse_scale.foundation.shipped import shipped
from diffcse_scale.foundation.unique_keys import DuplicateKey, load_yaml
from diffcse_scale.recipe import Recipe, Section


def shipped_recipes() -> dict[str, str]:
    """Name to YAML text of every recipe that comes with the package."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(shipped("recipes").glob("*.yaml"))}


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        name_or_path: a shipped recipe (`bert_base_sts`) or a path to a YAML file.
        overrides: `section.field=value`, the value in YAML.

    Raises:
        InputError: no such recipe, malformed YAML, unknown key (names the nearest), wrong type or range.
    """
    values = _read_yaml(name_or_path)
    for override in overrides:
        _apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(explain(problem, Recipe) for problem in error.errors())
        raise InputError(f"Recipe {name_or_path}: {problems}.") from None


def _read_yaml(name_or_path: str) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"Recipe {path}: no such file; shipped recipes are {', '.join(shipped_recipes())}.")
        text = path.read_text(encoding="utf-8")
    else:
        recipes = shipped_recipes()
        if name_or_path not in recipes:
            raise InputError(
                f"Recipe {shown(name_or_path)} is not shipped{nearest(name_or_path, recipes)}; "
                f"there are {', '.join(recipes)}, or give the path of a .yaml file."
            )
        text = recipes[name_or_path]
    try:
        values = load_yaml(text)
    except DuplicateKey as error:
        raise InputError(f"Recipe {name_or_path}: {error}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"Recipe {name_or_path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise InputError(f"Recipe {name_or_path} must be a mapping of sections, not {type(values).__name__}.")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"Override {shown(override)} must have the form section.field=value.")
    try:
        value = load_yaml(text)
    except DuplicateKey as error:
        raise InputError(f"Override {shown(override)}: {error}.") from None
    except yaml.YAMLError:
        raise InputError(f"Override {shown(override)}: {shown(text)} is not a YAML value; quote it.") from None
    if isinstance(value, str):
        value = _number(value)
    *sections, field = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"Override {shown(override)}: {section} is a field, not a section.")
    values[field] = value


def _number(text: str) -> str | float:
    """YAML 1.1 reads 1e-4 as a string; people who write it mean the number."""
    try:
        return float(text)
    except ValueError:
        return text


def explain(problem: Any, schema: type[BaseModel]) -> str:
    """One of the problems that pydantic found with values for `schema`, in a user's words."""
    location = problem["loc"]
    key = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        fields = _fields_of(location, schema)
        return f"unknown key {key}{nearest(str(location[-1]), fields)}, allowed here are {', '.join(fields)}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    given = problem.get("input")
    value = "" if isinstance(given, dict) else f" (given: {shown(given)})"
    return f"{key}: {message[0].lower()}{message[1:]}{value}"


def _fields_of(location: Sequence[int | str], schema: type[BaseModel]) -> dict[str, Any]:
    """The fields of the section that contains `location`."""
    for part in location[:-1]:
        annotation = schema.model_fields[str(part)].annotation
        sections = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not sections:
            return {}
        (schema,) = sections
    return dict(schema.model_fields)


def annotated(section: Section, indent: str = "") -> str:
    """YAML that reads back as `section`, a comment above each field."""
    values, lines = section.model_dump(mode="json"), []
    for name, field in type(section).model_fields.items():
        inner = getattr(section, name)
        about = field.description or type(inner).__doc__
        lines += textwrap.wrap(about or "", 110, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if isinstance(inner, Section):
            lines += [f"{indent}{name}:", annotated(inner, indent + "  ")]
        else:
            value = yaml.safe_dump(values[name], default_flow_style=True, width=10**6).removesuffix("...\n").rstrip()
            lines.append(f"{indent}{name}: {value}")
    return "\n".join(lines)
