"""Who may import whom: the table of docs/design.md holds for every import of the package, and it has no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "diffcse_scale"
Table = dict[str, set[str]]


def read_table(page: str) -> Table:
    """Rows `| place | what | may import |` under "Who may import whom": place to the places that it may import."""
    section = page.split("## Who may import whom")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    return {row[0].strip("`"): {name.strip("` ") for name in row[2].split(",")} - {""} for row in cells[2:]}


def places(root: Path) -> set[str]:
    """Every folder and file at the top level of the package, as the table names them."""
    files = {file.name for file in (root / PACKAGE).glob("*.py")}
    return files | {f"{file.parent.name}/" for file in (root / PACKAGE).glob("*/__init__.py")}


def place_of(module: str, root: Path) -> str:
    """`diffcse_scale.text.corpus` stands in `text/`, `diffcse_scale.recipe` in `recipe.py`."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "__init__"
    return f"{name}/" if (root / PACKAGE / name).is_dir() else f"{name}.py"


def imports(file: Path, root: Path) -> Iterator[str]:
    """The modules of this repository that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE:
            yield from (f"{PACKAGE}.{alias.name}" for alias in node.names if (root / PACKAGE / alias.name).exists())
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def violations(root: Path, table: Table) -> list[str]:
    """What is wrong with the house, a line each."""
    there = places(root)
    found = [f"{place} has no row" for place in sorted(there - table.keys())]
    found += [f"{place} has a row and is not there" for place in sorted(table.keys() - there)]
    for file in sorted((root / PACKAGE).rglob("*.py")):
        path = file.relative_to(root / PACKAGE)
        place = f"{path.parts[0]}/" if len(path.parts) > 1 else path.name
        for module in imports(file, root):
            if module.split(".")[0] in ("studies", "tests", "train"):
                found.append(f"{path} imports {module}")
            elif module.split(".")[0] == PACKAGE:
                other = place_of(module, root)
                if other not in {place, *table.get(place, set())}:
                    found.append(f"{path} imports {module}, but {place} may not import {other}")
    try:
        tuple(TopologicalSorter(table).static_order())
    except CycleError as error:
        found.append(f"a circle: {' -> '.join(error.args[1])}")
    return found


@pytest.fixture
def table() -> Table:
    return read_table((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))


def test_every_import_follows_the_table(table: Table) -> None:
    assert violations(ROOT, table) == []


def test_no_row_allows_what_nobody_needs(table: Table) -> None:
    """A permission that is left over hides the arrow that the next one adds."""
    used: Table = {place: set() for place in table}
    for file in (ROOT / PACKAGE).rglob("*.py"):
        path = file.relative_to(ROOT / PACKAGE)
        place = f"{path.parts[0]}/" if len(path.parts) > 1 else path.name
        used[place] |= {place_of(m, ROOT) for m in imports(file, ROOT) if m.split(".")[0] == PACKAGE} - {place}
    assert table == used


def small_house(folder: Path, **files: str) -> Path:
    for name, text in {"a/__init__": "", "a/one": "", "b": "", **files}.items():
        file = folder / PACKAGE / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


SMALL: Table = {"a/": {"b.py"}, "b.py": set()}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b", "from diffcse_scale.a.one import x"),
        ("b", "from diffcse_scale import a"),
        ("b", "import diffcse_scale.a"),
        ("b", "def late():\n    from diffcse_scale.a import one"),
        ("a/one", "from studies.step_times import x"),
        ("c", ""),
        ("c/__init__", ""),
    ],
)
def test_a_planted_import_and_a_place_without_a_row_are_noticed(name: str, text: str, tmp_path: Path) -> None:
    assert violations(small_house(tmp_path, **{"a/one": "from diffcse_scale.b import x"}), SMALL) == []
    assert len(violations(small_house(tmp_path, **{name: text}), SMALL)) == 1


def test_a_circle_in_the_table_is_noticed(tmp_path: Path) -> None:
    (line,) = violations(small_house(tmp_path), {"a/": {"b.py"}, "b.py": {"a/"}})
    assert line.startswith("a circle")
