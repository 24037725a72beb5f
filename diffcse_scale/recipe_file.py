"""Recipes as files: reading one, overriding its fields, explaining mistakes, and writing one with its meaning."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from diffcse_scale.foundation.errors import InputError, brief, nearest, quoted
from diffcse_scale.foundation.shipped import shipped
from diffcse_scale.foundation.text_file import read_text
from diffcse_scale.foundation.unique_keys import DuplicateKey, load_yaml
from diffcse_scale.recipe import Recipe, Section


def shipped_recipes() -> dict[str, str]:
    """Name to YAML text of every recipe that comes with the package."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(shipped("recipes").glob("*.yaml"))}


def listed() -> list[str]:
    """A line for each shipped recipe: its name, and the first sentence of the comment that it begins with."""
    lines = []
    for name, text in shipped_recipes().items():
        about = text.partition("\n")[0].removeprefix("# ").partition(". ")[0].partition(": ")[0].rstrip(".")
        lines.append(f"{name:<24}{textwrap.shorten(about, 55, placeholder='...')}")
    return lines


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
        raise InputError(f"Recipe {brief(name_or_path, 200)}: {explained(error, Recipe)}.") from None


def _read_yaml(name_or_path: str) -> dict[str, Any]:
    called = brief(name_or_path, 200)
    if name_or_path.endswith((".yaml", ".yml")):
        text = read_text(name_or_path, f"Recipe {called}", f"shipped recipes are {', '.join(shipped_recipes())}")
    else:
        recipes = shipped_recipes()
        if name_or_path not in recipes:
            raise InputError(
                f"Recipe {quoted(name_or_path)} is not shipped{nearest(name_or_path, recipes)}; "
                f"there are {', '.join(recipes)}, or give the path of a .yaml file."
            )
        text = recipes[name_or_path]
    try:
        values = load_yaml(text)
    except DuplicateKey as error:
        raise InputError(f"Recipe {called}: {error}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"Recipe {called} is not valid YAML: {brief(' '.join(str(error).split()), 300)}.") from None
    if not isinstance(values, dict):
        raise InputError(f"Recipe {called} must be a mapping of sections, not {type(values).__name__}.")
    if odd := [key for key in values if not isinstance(key, str)]:
        raise InputError(f"Recipe {called}: {quoted(odd[0])} is not the name of a section or field.")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, field = key.split(".")
    if not equals or not all((*sections, field)):
        raise InputError(f"Override {quoted(override)} must have the form section.field=value.")
    try:
        value = text if text.startswith("*") else load_yaml(text)  # a glob: there is nothing that an alias could name
    except DuplicateKey as error:
        raise InputError(f"Override {quoted(override)}: {error}.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(getattr(error, "problem", error)).split())
        raise InputError(
            f"Override {quoted(override)} has no YAML value ({brief(reason, 120)}); put quotes around what is text."
        ) from None
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"Override {quoted(override)}: {brief(section)} is a field, not a section.")
    values[field] = value


MOST_PROBLEMS = 5  # that one sentence names


def explained(error: ValidationError, schema: type[BaseModel]) -> str:
    """What pydantic found with values for `schema`, in a user's words."""
    return few([explain(problem, schema) for problem in error.errors()])


def few(problems: Sequence[str]) -> str:
    """Some problems for one sentence, and how many there are beside them."""
    more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
    return "; ".join(problems[:MOST_PROBLEMS]) + more


def explain(problem: Any, schema: type[BaseModel]) -> str:
    """One of the problems that pydantic found with values for `schema`, in a user's words."""
    location = problem["loc"]
    key = brief(".".join(str(part) for part in location))
    if problem["type"] == "extra_forbidden":
        fields = _fields_of(location, schema)
        return f"unknown key {key}{nearest(str(location[-1]), fields)}, allowed here are {', '.join(fields)}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:
        return message
    given = problem.get("input")
    shown = "" if isinstance(given, dict) else f" (given: {quoted(given)})"
    if problem["type"] == "string_type" and isinstance(given, int | float):
        shown += f"; put quotes around what is text ({key}=\"'...'\" on a command line)"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"


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
