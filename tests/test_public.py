"""What other programs may import says how it is called, and every example of it runs and prints what it says.

Public is what the modules on the pages of docs/api name in their `__all__`. A public function or class has a first
sentence, `Args` with every parameter, `Returns` where it returns something, and an `Example` that shows a result. A
public method names its parameters; the class has the example.
"""

from __future__ import annotations

import ast
import dataclasses
import doctest
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pydantic
import pytest

from diffcse_scale.recipe import Recipe
from tests.support.launch import environment

ROOT = Path(__file__).parents[1]
MODULES = [
    module
    for page in sorted((ROOT / "docs" / "api").glob("*.rst"))
    for module in re.findall(r"^.. automodule:: (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
]
SLOW = {"DiffCSE", "evaluate_transfer"}  # their examples train: a network, and hundreds of classifiers
FLAGS = doctest.ELLIPSIS | doctest.REPORT_NDIFF


@functools.cache
def public() -> dict[str, Any]:
    """Every public function and class by its full name; one that two modules name stands under the first."""
    found: dict[str, Any] = {}
    for module in map(import_module, MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing not in found.values():
                found[f"{module.__name__}.{name}"] = thing
    return found


def sections(documentation: str) -> dict[str, str]:
    """What stands below `Args:`, `Returns:` and so on; the text before them under the empty name."""
    parts = re.split(r"^([A-Z][a-z]+):\n(?= )", inspect.cleandoc(documentation), flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], [parts[0], *map(textwrap.dedent, parts[2::2])], strict=True))


def entries(section: str) -> set[str]:
    """The names that a section describes: what stands before the colons of its lines without indentation."""
    names = re.findall(r"^(\w[\w, *]*):", section, flags=re.MULTILINE)
    return {name.strip("* ") for entry in names for name in entry.split(",")}


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def has_fields(thing: Any) -> bool:
    """Whether it is a class that is made of its fields, as a named tuple is."""
    return inspect.isclass(thing) and (
        dataclasses.is_dataclass(thing) or issubclass(thing, pydantic.BaseModel) or hasattr(thing, "_fields")
    )


def is_section(thing: Any) -> bool:
    """Whether it is a section of a recipe, which nobody makes alone: the example of `Recipe` has sections."""
    return (
        inspect.isclass(thing)
        and issubclass(thing, pydantic.BaseModel)
        and thing.__name__.endswith("Recipe")
        and thing is not Recipe
    )


def fields_without_words(thing: type) -> list[str]:
    """Fields of a class that has them instead of parameters, and of which nothing is said."""
    if issubclass(thing, pydantic.BaseModel):
        return [n for n, field in thing.model_fields.items() if not (field.description or is_section(field.annotation))]
    words = sections(thing.__doc__ or "")
    named = entries(words.get("Attributes", "")) | set(re.findall(r"`(\w+)", words[""]))
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    assert isinstance(body, ast.ClassDef)
    for node, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            named.add(ast.unparse(node.target))
    return [name for name in parameters(thing) if name not in named]


def lacks(thing: Any) -> Iterator[str]:
    """What is missing in the words about a public function or class."""
    written = sections(thing.__doc__ or "")
    if not written[""].strip():
        yield "a first sentence"
    if ">>>" not in written.get("Example", ""):
        if not is_section(thing):
            yield "an Example"
    elif not any(example.want for example in doctest.DocTestParser().get_examples(written["Example"])):
        yield "an Example that shows a result"
    if has_fields(thing):
        yield from (f"words about {name}" for name in fields_without_words(thing))
    else:
        described = entries(written.get("Args", ""))
        yield from (f"{name} in Args" for name in parameters(thing) if name not in described)
    called = vars(thing).get("__init__") if inspect.isclass(thing) and not has_fields(thing) else thing
    if inspect.isfunction(called) and re.search(r"^\s+raise \w", inspect.getsource(called), flags=re.MULTILINE):
        yield from ["Raises"] * ("Raises" not in written)
    returned = None if inspect.isclass(thing) else inspect.signature(thing).return_annotation
    # without a parameter the first sentence is about what is returned
    if returned not in (None, "None") and parameters(thing) and "Returns" not in written:
        yield "Returns"


def methods_without_words(thing: type) -> Iterator[str]:
    for name, member in vars(thing).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))
        if name.startswith("_") or not inspect.isfunction(function) or function.__qualname__.count(".") != 1:
            continue
        words = inspect.getdoc(getattr(thing, name)) or ""
        if not words:
            yield name
        yield from (f"{name}: {p}" for p in parameters(function) if not re.search(rf"\b{p}\b", words))


def test_a_module_of_the_interface_says_what_is_public():
    assert [name for name in MODULES if not getattr(import_module(name), "__all__", None)] == []
    for module in map(import_module, MODULES):
        assert [name for name in module.__all__ if not hasattr(module, name)] == [], module


@pytest.mark.parametrize("name", public())
def test_it_says_how_it_is_called(name: str):
    thing = public()[name]
    assert list(lacks(thing)) == []
    if inspect.isclass(thing):
        assert list(methods_without_words(thing)) == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name.rpartition(".")[2] in SLOW))
        for name in public()
        if not is_section(public()[name])
    ],
)
def test_its_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a folder of its own, with nothing imported: the example is what a reader would copy."""
    monkeypatch.chdir(tmp_path)
    for variable, value in {**environment(), "DIFFCSE_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(variable, value)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(public()[name]) or "", {}, name, None, None)
    told: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=FLAGS).run(example, out=told.append)
    assert not told, "".join(told)


def test_what_is_missing_is_noticed():
    def function(rows: int, columns: int) -> int:
        """Sentence.

        Args:
            rows: said.

        Example:
            >>> pass
        """
        return rows + columns

    assert list(lacks(function)) == ["an Example that shows a result", "columns in Args", "Returns"]

    class Thing(pydantic.BaseModel):
        size: int

        def grow(self, by: int) -> None:
            """Become larger."""

    assert list(lacks(Thing)) == ["a first sentence", "an Example", "words about size"]
