"""How Sphinx builds the site: the Markdown files as they are, and a reference from the docstrings.

The source is the root of the repository, so that links between pages are the same here and in a checkout:

    sphinx-build -W -c docs . build/docs
"""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

import diffcse_scale

project = "diffcse-scale"
version = release = diffcse_scale.__version__
root_doc = "README"
include_patterns = ["*.md", "docs/**", "ds_configs/*.md", "kernels/*.md"]
exclude_patterns = ["build", "dist", "runs", ".*"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 4  # as GitHub makes them, and links between pages use them

html_theme = "furo"
html_title = f"diffcse-scale {release}"
html_show_sphinx = False
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
default_role = "code"  # docstrings have single backticks, as Markdown has
python_maximum_signature_line_length = 88

# The order of the pages; one that is missing here is a warning of Sphinx, and so an error.
SECTIONS = {
    "To begin": ["docs/install", "docs/quickstart", "docs/corpus", "docs/pairs", "docs/recipes", "docs/python"],
    "Training": [
        "docs/backbones",
        "docs/large_batches",
        "docs/generator",
        "docs/another_language",
        "docs/objective",
        "docs/alternatives",
        "docs/tracking",
        "docs/report",
    ],
    "Machines": [
        "docs/clusters",
        "docs/kubernetes",
        "docs/first_gpu_hour",
        "docs/doctor",
        "docs/plan",
        "docs/scaling",
        "docs/speed",
        "ds_configs/README",
    ],
    "Using a model": ["docs/evaluation", "docs/encode", "docs/export", "docs/serving"],
    "Kernels": ["docs/kernels", "kernels/README", "kernels/CHANGELOG"],
    "Reference": ["docs/api/trainer", "docs/api/kernels", "docs/bad_input", "docs/overwriting", "docs/README"],
    "The project": ["docs/results/README", "docs/design", "CONTRIBUTING", "CHANGELOG"],
}
RESULTS = "docs/results"


def toctree(pages: list[str], caption: str = "") -> str:
    """A list of pages for the side bar, which does not show on the page itself."""
    heading = f":caption: {caption}\n" if caption else ""
    return "\n```{toctree}\n:hidden:\n" + heading + "\n".join(["", *(f"/{page}" for page in pages)]) + "\n```\n"


def add_pages(app: Sphinx, page: str, source: list[str]) -> None:
    """The first page gets the order of all others, and the index of results that of the results."""
    if page == root_doc:
        source[0] += "".join(toctree(pages, caption) for caption, pages in SECTIONS.items())
    elif page == f"{RESULTS}/README":
        measured = sorted(name for name in app.env.found_docs if name.startswith(RESULTS) and name != page)
        source[0] += toctree(measured)


def as_restructured_text(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are Markdown with Google's sections: an indented block after a blank line is code."""
    if inspect.isclass(thing) and issubclass(thing, BaseModel) and thing is not BaseModel:
        lines += ["", *fields(thing)]
    text, previous = [], ""
    for number, line in enumerate(lines):
        after_blank = number > 0 and not lines[number - 1].strip()
        if line.startswith("    ") and after_blank and previous and not previous.startswith(" "):
            text += ["::", ""]
        text.append(line)
        previous = line if line.strip() else previous
    lines[:] = text


def fields(model: type[BaseModel]) -> list[str]:
    """Google's section of attributes, from the descriptions of a section of the recipe."""
    described = [f"    {name}: {field.description}" for name, field in model.model_fields.items() if field.description]
    return ["Attributes:", *described] if described else []


def give_the_first_page_its_name(app: Sphinx, error: Exception | None) -> None:
    """Servers look for index.html."""
    if error is None and app.builder.format == "html":
        shutil.copyfile(Path(app.outdir, f"{root_doc}.html"), Path(app.outdir, "index.html"))


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_pages)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)  # before napoleon
    app.connect("build-finished", give_the_first_page_its_name)
