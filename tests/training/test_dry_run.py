"""A dry run: everything before the first step, and what that step would see; no run is begun."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diffcse_scale.training.dry_run import edited_row
from tests.support.launch import launch
from tests.support.toy_world import toy_tokenizer


def test_replaced_tokens_stand_beside_what_they_were():
    tokenizer = toy_tokenizer(["a cat saw a dog"] * 3, vocabulary=60)
    ids = tokenizer("a cat saw a dog")["input_ids"]
    dog, cat = ids[-2], ids[2]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    words = edited_row(ids, [dog if place == 2 else token for place, token in enumerate(ids)], tokenizer).split()
    assert words == [*tokens[:2], f"{tokens[2]}>{tokens[-2]}", *tokens[3:]] and dog != cat


@pytest.mark.slow
def test_it_shows_rows_as_edited_and_the_memory_and_begins_no_run(toy_world: Path, tmp_path: Path):
    output = tmp_path / "run"
    result = launch("--dry-run", "--recipe", str(toy_world / "toy.yaml"), "--output", str(output))
    assert result.returncode == 0, result.stdout
    shown = result.stdout.partition("Rows of the first batch")[2].partition("Memory that a step needs")[0]
    assert shown.count("[CLS]") == shown.count("[SEP]") == 3 and re.search(r"\w>\w", shown)
    assert "It fits." in result.stdout and "first rows" in result.stdout and "no run was started" in result.stdout
    assert not output.exists()


@pytest.mark.slow
def test_it_refuses_what_training_would_refuse(toy_world: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    result = launch("--dry-run", "--recipe", str(toy_world / "toy.yaml"), "--output", str(tmp_path / "run"))
    assert result.returncode == 2 and "is not a run of this program; give another --output" in result.stdout
