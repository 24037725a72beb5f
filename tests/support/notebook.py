"""The notebook that an example is: a cell for each part between its `# %%` lines, its docstring as the first.

python -m tests.support.notebook        # writes examples/notebook.ipynb anew
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from diffcse_scale.foundation.strict_json import to_json

SOURCE = Path(__file__).parents[2] / "examples" / "notebook.py"
NOTEBOOK = SOURCE.with_suffix(".ipynb")


def notebook_of(source: Path) -> dict[str, Any]:
    """In the format 4.5 of Jupyter, nothing run yet."""
    text = source.read_text(encoding="utf-8")
    about = ast.get_docstring(ast.parse(text)) or ""
    cells: list[dict[str, Any]] = [_cell(0, "markdown", about)]
    for number, code in enumerate(text.split("# %%\n")[1:], start=1):
        cells.append({**_cell(number, "code", code.strip()), "execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}


if __name__ == "__main__":
    NOTEBOOK.write_text(to_json(notebook_of(SOURCE), indent=1) + "\n", encoding="utf-8")
