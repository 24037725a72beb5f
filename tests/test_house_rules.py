"""Rooms that are small enough to look around in, names that say which room is meant, and nothing written twice."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.support.plant_faults import FAULTS

ROOT = Path(__file__).parents[1]
FILES = [
    ROOT / "train.py",
    *(file for room in ("diffcse_scale", "kernels", "studies") for file in (ROOT / room).rglob("*.py")),
]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines; of a function without its signature and docstring
LONGEST_REPETITION = 6  # lines, as `statements` counts them
SHARED = {"__init__.py", "__main__.py", "command.py"}


def long_functions(source: str) -> list[str]:
    """The names of those that are too long."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and (body[-1].end_lineno or 0) - body[0].lineno + 1 > LONGEST_FUNCTION:
                found.append(node.name)
    return found


def rooms_by_name(files: list[Path]) -> dict[str, set[Path]]:
    """Names that several files have, with their rooms; implementations and benchmark of a kernel count as one room."""
    rooms = defaultdict(set)
    for file in files:
        if file.name not in SHARED:
            kernels = file.is_relative_to(ROOT / "kernels")
            rooms[file.name].add(ROOT / "kernels" if kernels else file.parent)
    return {name: places for name, places in rooms.items() if len(places) > 1}


def statements(source: str) -> list[tuple[int, str]]:
    """Number and content of the lines that are neither blank nor of an import or a signature."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left_out.update(range(node.lineno, node.body[0].lineno))
    lines = enumerate(source.splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip() and number not in left_out]


def repetitions(texts: dict[str, str]) -> Iterator[list[str]]:
    """Where the same lines stand more than once, one after another and too many."""
    found = defaultdict(list)
    for name, text in texts.items():
        lines = statements(text)
        for first in range(len(lines) - LONGEST_REPETITION):
            block = lines[first : first + LONGEST_REPETITION + 1]
            found[tuple(line for _, line in block)].append(f"{name}:{block[0][0]}")
    yield from (places for places in found.values() if len(places) > 1)


def test_every_file_and_function_is_seen_at_a_glance() -> None:
    files = [*FILES, *(ROOT / "tests").rglob("*.py")]
    texts = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files}
    assert [name for name, text in texts.items() if len(text.splitlines()) > LONGEST_FILE] == []
    assert {name: found for name, text in texts.items() if (found := long_functions(text))} == {}


def test_no_two_files_share_a_name() -> None:
    assert rooms_by_name(FILES) == {}


def test_nothing_is_written_twice() -> None:
    assert list(repetitions({str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in FILES})) == []


def test_what_breaks_a_rule_is_noticed() -> None:
    body = "\n".join("    x = 1" for _ in range(LONGEST_FUNCTION))
    assert long_functions(f'def f():\n    """Says.\n\n    More.\n    """\n{body}') == []
    assert long_functions(f"def f():\n{body}\n    y = 1") == ["f"]
    twice = [ROOT / "diffcse_scale/text/a.py", ROOT / "diffcse_scale/model/a.py"]
    assert rooms_by_name(twice) == {"a.py": {file.parent for file in twice}}
    block = "".join(f"x{number} = {number}\n\n" for number in range(LONGEST_REPETITION + 1))
    indented = "def f():\n" + "".join(f"    {line}\n" for line in block.split("\n"))
    assert list(repetitions({"a": block, "b": f"import os\n{indented}"})) == [["a:1", "b:3"]]
    signature = "".join(f"    a{number},\n" for number in range(20))
    assert list(repetitions({"a": f"def f(\n{signature}): ...\n", "b": f"def g(\n{signature}): ...\n"})) == []


def test_each_fault_that_is_planted_has_its_place():
    missing = [f.what for f in FAULTS if (ROOT / f.file).read_text(encoding="utf-8").count(f.old) != 1]
    assert missing == []
