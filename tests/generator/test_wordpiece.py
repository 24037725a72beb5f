"""A vocabulary is learnt from words, whatever the lines that they stand in."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffcse_scale.embedded.grammar import training_sentences
from diffcse_scale.generator import wordpiece
from diffcse_scale.generator.wordpiece import pieces, wordpiece_of
from diffcse_scale.recipe import DataRecipe


@pytest.mark.parametrize("text", ["", "one two", "one two three four", "x" * 25, "one\ttwo\nthree " * 9, " " * 30])
def test_pieces_are_the_text_and_keep_words_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wordpiece, "TOGETHER", 10)
    found = list(pieces(text))
    assert "".join(found) == text
    assert all(len(piece) <= 10 for piece in found)
    if "x" not in text:
        assert " ".join(found).split() == text.split()


def test_one_line_of_all_sentences_gives_the_vocabulary_of_all_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into many pieces, of which none is longer than a few sentences."""
    sentences = training_sentences(200, seed=2)
    learnt = []
    for name, between, together in (("lines", "\n", 1_000_000), ("line", " ", 300)):
        file = tmp_path / f"{name}.txt"
        file.write_text(between.join(sentences), encoding="utf-8")
        monkeypatch.setattr(wordpiece, "TOGETHER", together)
        data = DataRecipe(files=[str(file)], cache_dir=str(tmp_path / "cache"), workers=1)
        learnt.append(wordpiece_of(data, 300).get_vocab())
    assert learnt[0] == learnt[1] and len(learnt[0]) == 300
