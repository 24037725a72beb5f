"""Recipe files: reading them, overriding fields, explaining mistakes, and writing them with explanations."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from diffcse_scale.foundation.errors import InputError, brief, either, nearest, quoted
from diffcse_scale.foundation.shipped import shipped
from diffcse_scale.foundation.text_file import read_text
from diffcse_scale.foundation.unique_keys import DuplicateKey, load_yaml
from diffcse_scale.recipe import Recipe, Section, completed


def shipped_recipes() -> dict[str, str]:
    """Name to YAML text of every recipe that comes with the package."""
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(shipped("recipes").glob("*.yaml"))}


def listed() -> list[str]:
    """A line for each shipped recipe: its name, and the first sentence of its leading comment."""
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
        InputError: the recipe does not exist, its YAML is malformed, a key is unknown (the message names the nearest
            one), or a value has the wrong type or range.
    """
    return _validated(_parsed(_read(name_or_path), brief(name_or_path, 200)), overrides, name_or_path)


def load_recorded(file: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Like `load_recipe`, for the recipe of a run. Fields that are newer than the run are `completed`."""
    return _validated(completed(_parsed(_read(str(file)), brief(str(file), 200))), overrides, str(file))


def _validated(values: dict[str, Any], overrides: Sequence[str], called: str) -> Recipe:
    for override in overrides:
        _apply_override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"Recipe {brief(called, 200)}: {explained(error, Recipe)}.") from None


def _read(name_or_path: str) -> str:
    """The text of the file."""
    recipes = shipped_recipes()
    if name_or_path.endswith((".yaml", ".yml")):
        called = brief(name_or_path, 200)
        return read_text(name_or_path, f"Recipe {called}", f"shipped recipes are {', '.join(recipes)}")
    if name_or_path not in recipes:
        raise InputError(
            f"Recipe {quoted(name_or_path)} is not shipped{nearest(name_or_path, recipes)}; "
            f"there are {', '.join(recipes)}, or give the path of a .yaml file."
        )
    return recipes[name_or_path]


def _parsed(text: str, called: str) -> dict[str, Any]:
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
        # "*" starts a glob here, not a YAML alias; "-" is standard input, not a list with an empty entry
        value = text if text.startswith("*") or text == "-" else load_yaml(text)
    except DuplicateKey as error:
        raise InputError(f"Override {quoted(override)}: {error}.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(getattr(error, "problem", error)).split())
        raise InputError(
            f"Override {quoted(override)} has no YAML value ({brief(reason, 120)}); {_quoting(brief(key))}."
        ) from None
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"Override {quoted(override)}: {brief(section)} is a field, not a section.")
    values[field] = value


MOST_PROBLEMS = 5  # named in one message


def explained(error: ValidationError, schema: type[BaseModel]) -> str:
    """The problems that pydantic found with values for `schema`, in a user's words."""
    return few([explain(problem, schema) for problem in error.errors()])


def few(problems: Sequence[str]) -> str:
    """The first problems as one sentence, with the number of the others."""
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
        shown += f"; {_quoting(key)}"
    return f"{key}: {message[0].lower()}{message[1:]}{shown}"


def _quoting(key: str) -> str:
    """Advice on quoting text that YAML would read as another type. The shell removes one pair of quotes."""
    return f"put quotes around what is text ({key}=\"'...'\" on a command line)"


def _fields_of(location: Sequence[int | str], schema: type[BaseModel]) -> dict[str, Any]:
    """The fields of the section that contains `location`."""
    for part in location[:-1]:
        annotation = schema.model_fields[str(part)].annotation
        sections = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not sections:
            return {}
        (schema,) = sections
    return dict(schema.model_fields)


@dataclass(frozen=True)
class Comments:
    """A file's comments on a field: the lines above it, and the rest of its line."""

    above: Sequence[str] = ()
    beside: str = ""


def explained_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> str:
    """YAML of a recipe with all fields, their meaning, and the comments of its file.

    An overridden field loses the comment beside it, because that comment is about the file's value.

    Raises:
        InputError: as for `load_recipe`.
    """
    recipe = load_recipe(name_or_path, overrides)
    comments = _comments(_read(name_or_path))
    for override in overrides:
        key = override.partition("=")[0]
        comments[key] = Comments(comments.get(key, Comments()).above)
    return annotated(recipe, comments)


def _comments(text: str) -> dict[str, Comments]:
    """The comments of all sections and fields (`section.field`) in valid YAML."""
    lines, found = text.splitlines(), {}

    def look(mapping: yaml.MappingNode, section: str) -> None:
        for key, value in mapping.value:
            number = key.start_mark.line
            first = number
            while first and lines[first - 1].lstrip().startswith("#"):
                first -= 1
            is_beside = value.end_mark.line == number and getattr(value, "flow_style", True)
            end = value.end_mark.column if is_beside else key.end_mark.column + 1
            beside = lines[number][end:].strip()
            above = [line.strip() for line in lines[first:number]]
            found[f"{section}{key.value}"] = Comments(above, beside if beside.startswith("#") else "")
            if isinstance(value, yaml.MappingNode) and not value.flow_style:
                look(value, f"{section}{key.value}.")

    whole = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(whole, yaml.MappingNode)  # it was read as a recipe
    look(whole, "")
    return found


def annotated(section: Section, comments: Mapping[str, Comments] | None = None, inside: str = "") -> str:
    """YAML that reads back as `section`, with each field's meaning above it and the file's `comments`.

    Args:
        inside: path of the section, such as "model.".
    """
    values, lines, indent = section.model_dump(mode="json"), [], "  " * inside.count(".")
    for name, field in type(section).model_fields.items():
        inner = getattr(section, name)
        own = (comments or {}).get(f"{inside}{name}", Comments())
        about = " ".join(filter(None, (field.description or type(inner).__doc__, _choices(field.annotation))))
        meaning = textwrap.wrap(about, 110 - len(indent), initial_indent="# ", subsequent_indent="# ")
        # a file that was printed by this function already contains the meanings
        lines += [indent + line for line in (*(line for line in own.above if line not in meaning), *meaning)]
        beside = f"  {own.beside}" if own.beside else ""
        if isinstance(inner, Section):
            lines += [f"{indent}{name}:{beside}", annotated(inner, comments, f"{inside}{name}.")]
        else:
            value = yaml.safe_dump(values[name], default_flow_style=True, width=10**6).removesuffix("...\n").rstrip()
            lines.append(f"{indent}{name}: {value}{beside}")
    return "\n".join(lines)


def _choices(annotation: Any) -> str:
    """A sentence that lists a field's allowed words, if there are several."""
    literals = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal]
    words = [word for literal in literals for word in get_args(literal)]
    return f"One of {either(words)}." if len(words) > 1 else ""
