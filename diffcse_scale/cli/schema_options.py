"""Command line options from a pydantic model: each field becomes an option, and its description the help text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.recipe_file import explained

Options = TypeVar("Options", bound=BaseModel)


def options_of(context: typer.Context, schema: type[Options]) -> Options:
    """The options that were given on the command line.

    Raises:
        InputError: a value is not allowed.
    """
    given = {
        name: value
        for name, value in context.params.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    try:
        return schema(**given)
    except ValidationError as error:
        raise InputError(f"{explained(error, schema)}.") from None


def with_options_of(options: type[BaseModel]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator that gives a command an option for every field of a pydantic model, with the description as help."""
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for name, field in options.model_fields.items():
        flag = [f"--{field.alias}"] if field.alias else []
        option = Annotated[field.annotation, typer.Option(*flag, help=field.description)]  # type: ignore[name-defined]
        default = inspect.Parameter.empty if field.is_required() else field.default
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option))

    def add(command: Callable[..., None]) -> Callable[..., None]:
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return add
