"""What the documentation points at is there, and the reference of the interfaces can be built."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffcse_scale.recipe_file import shipped_recipes

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("ds_configs/*.md"), *ROOT.glob("kernels/*.md")]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    results = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page
    for page in (ROOT / "docs" / "results").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in results, page


def test_every_shipped_recipe_is_in_the_table():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert [name for name in shipped_recipes() if f"`{name}`" not in page] == []


@pytest.mark.slow
def test_the_reference_is_built_from_the_docstrings(tmp_path: Path):
    words = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (modules,) = re.findall(r"^API := (.*)$", words, flags=re.MULTILINE)
    command = [sys.executable, "-m", "pdoc", "--docformat", "google", "--output-directory", str(tmp_path)]
    done = subprocess.run([*command, *modules.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (
        "Without the similarity matrix".lower() in (tmp_path / "diffcse_kernels" / "info_nce.html").read_text().lower()
    )
    for module in modules.split():
        assert (tmp_path / (module.replace(".", "/") + ".html")).is_file(), module
