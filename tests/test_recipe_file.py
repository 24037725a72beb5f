"""`diffcse-scale recipe`: a file to start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from diffcse_scale.recipe import Recipe, Section
from diffcse_scale.recipe_file import annotated, explained_recipe, load_recipe, shipped_recipes


def sections(section: type[Section]) -> Iterator[type[Section]]:
    yield section
    for field in section.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from sections(kind)


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_what_is_printed_is_the_same_recipe(name, tmp_path):
    recipe = load_recipe(name, ["model.lora.rank=4"] if name == "quickstart" else [])
    (tmp_path / "mine.yaml").write_text(annotated(recipe))
    assert load_recipe(str(tmp_path / "mine.yaml")) == recipe


def test_every_field_of_every_section_is_there_with_its_meaning():
    recipe = load_recipe("quickstart", ["model.lora.rank=4"])
    text = annotated(recipe)
    said = " ".join(line.strip().removeprefix("# ") for line in text.splitlines())
    for section in sections(Recipe):
        for name, field in section.model_fields.items():
            assert f"{name}:" in text
            assert field.description is None or field.description in said
    assert yaml.safe_load(text)["model"]["lora"]["rank"] == 4


def test_every_field_has_a_meaning():
    for section in sections(Recipe):
        for name, field in section.model_fields.items():
            whole_section = any(issubclass(kind, Section) for kind in (field.annotation,) if isinstance(kind, type))
            assert whole_section or field.description, f"{section.__name__}.{name}"


def test_a_printed_recipe_keeps_the_comments_of_its_file(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "# Mine.\nname: mine  # a name\nmodel: # networks\n  encoder: embedded\n  generator: embedded\n"
        "  # as SimCSE\n  pooling: 'mean' # of \"all\" # tokens\n"
        "data: {files: [a.txt, b.txt]}  # two\noptimizer:\n  learning_rate: 1.0e-4  # slow\n"
    )
    lines = explained_recipe(str(mine), ["optimizer.learning_rate=1e-3"]).splitlines()
    assert lines[0] == "# Mine." and "name: mine  # a name" in lines and "model:  # networks" in lines
    at = lines.index('  pooling: mean  # of "all" # tokens')
    assert lines[at - 2] == "  # as SimCSE" and lines[at - 1].endswith("h. One of cls, mean, last or first_last_mean.")
    assert "data:  # two" in lines and "  learning_rate: 0.001" in lines
    (tmp_path / "printed.yaml").write_text("\n".join(lines))
    assert explained_recipe(str(tmp_path / "printed.yaml")).splitlines() == lines
    assert all(explained_recipe(name).startswith(text.partition("\n")[0]) for name, text in shipped_recipes().items())
