"""What the documentation points at is there, and the commands on its pages are taken."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from diffcse_scale.recipe import Recipe
from diffcse_scale.recipe_file import load_recipe, shipped_recipes
from diffcse_scale.training import train_arguments
from diffcse_scale.training.train_arguments import parse_arguments
from tests.support.code_blocks import PAGES
from tests.support.launch import ROOT


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


def test_the_fields_that_a_recipe_must_have_are_named():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"([^\n]*\n?[^\n]*) must be there", page)
    assert re.findall(r"`([\w.]+)`", sentence) == list(_without_default(Recipe))


def _without_default(section: type[BaseModel], place: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _without_default(field.annotation, f"{place}{name}.")
        elif field.is_required():
            yield place + name


def test_every_command_for_training_on_a_page_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Wherever it is typed: it names no file of the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_arguments, "check_trackers", lambda names: None)  # their packages may not be here
    (tmp_path / "mine.yaml").write_text(shipped_recipes()["quickstart"])
    (tmp_path / "generator").mkdir()
    for name in shipped_recipes():  # the models that would be on the Hub
        model = load_recipe(name).model
        for network in filter(None, (model.encoder, model.discriminator, model.generator)):
            (tmp_path / network).mkdir(parents=True, exist_ok=True)
    found = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ").replace(" ...", "")
        for command in re.findall(
            r"(?:^ {4,}|`)(?:\.venv/bin/)?diffcse-scale train ([^`\n#]*-[^`\n#]*)", text, re.MULTILINE
        ):
            assert "ds_configs" not in command
            arguments = re.sub(r"^--processes \d+ ", "", command)
            parse_arguments(None, shlex.split(arguments))  # ends the process where it is not
            found += 1
    assert found >= 8


def test_the_readme_says_how_programs_are_found_before_it_uses_one():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if re.match(r" {4}(diffcse-scale|deepspeed) ", line))
    assert "    source .venv/bin/activate" in lines[:first]


def _sentences(page: str) -> Iterator[str]:
    """The sentences of a page's prose: paragraphs and list items, without code, headings, pictures and tables."""
    prose = re.sub(r"^(?: {4}|#|!|\|).*$", "", page, flags=re.MULTILINE)
    prose = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", prose)  # of a link its words
    for block in re.split(r"\n\s*\n|\n(?=- )", prose):
        yield from filter(None, re.split(r"(?<=[.!?])\s+|(?<=[.!?]\))\s+", " ".join(block.removeprefix("- ").split())))


def test_sentences_end_at_full_stops_and_not_in_names_or_links():
    page = "# Title\n\nSee `a.b` ([the\npage](c.md#d)). Then, with x.y=1.5,\nrun it:\n\n    code. 2\n\n- One? Two.\n- 3"
    assert [*_sentences(page)] == ["See `a.b` (the page).", "Then, with x.y=1.5, run it:", "One?", "Two.", "3"]


def test_every_sentence_of_the_readme_has_fewer_than_25_words():
    sentences = [*_sentences((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert len(sentences) > 50
    assert [sentence for sentence in sentences if len(sentence.split()) >= 25] == []


@pytest.mark.parametrize("rows", sorted((ROOT / "docs" / "results").glob("*.jsonl")), ids=lambda file: file.name)
def test_rows_name_data_by_a_variable_and_not_by_a_path_of_one_machine(rows: Path):
    assert re.findall(r'"[\w.]+=/[^"]*"', rows.read_text(encoding="utf-8")) == []
