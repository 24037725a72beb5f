"""Words that differ by an accent, a capital or a mark stay different tokens wherever the text has such words.

The truth is the text: what a tokenizer writes back is what it was given.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Transformer
from transformers import AutoTokenizer, BertTokenizer

from diffcse_scale.embedded.grammar import training_sentences
from diffcse_scale.generator.pretraining import pretrain_generator
from diffcse_scale.generator.spelling import Spelling, spelling_of
from diffcse_scale.generator.wordpiece import wordpiece_of
from diffcse_scale.recipe import DataRecipe

GERMAN = [
    "Zum Öffnen drücken Sie die grüne Taste.",
    "Wir drucken das schöne Bild und drücken den Knopf.",
    "Die Arme sind müde, die arme Frau ist größer.",
    "Er würde gern wissen, ob es schon spät war.",
]
CHINESE = ["我喜欢在图书馆看书。", "他每天早上去公园跑步。", "北京是中国的首都。"]
JAPANESE = ["これはペンです。", "かきとがき、はしとばし。", "東京で本を読みます。"]
HINDI = ["मैं किताब पढ़ता हूँ", "यह पुल लंबा है", "एक पल रुको"]
ENGLISH = training_sentences(100, seed=3)


@pytest.fixture
def corpus(tmp_path: Path):
    """Makes a corpus of sentences."""

    def make(sentences: list[str]) -> DataRecipe:
        file = tmp_path / "corpus.txt"
        file.write_text("\n".join(sentences), encoding="utf-8")
        return DataRecipe(files=[str(file)], cache_dir=str(tmp_path / "cache"), workers=1)

    return make


def learnt(data: DataRecipe, languages: list[str] | None = None, lowercase: bool | None = None) -> BertTokenizer:
    return wordpiece_of(data, 1000, spelling_of(data, languages, lowercase), 1.0)


def told_apart(tokenizer: BertTokenizer, one: str, other: str) -> bool:
    return tokenizer.tokenize(one) != tokenizer.tokenize(other)


@pytest.mark.parametrize("sentences", [GERMAN, CHINESE, JAPANESE, HINDI], ids=["de", "zh", "ja", "hi"])
def test_what_is_tokenized_is_written_back_as_it_was(corpus, sentences):
    tokenizer = learnt(corpus(sentences))
    for sentence in sentences:
        ids = tokenizer(sentence)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        back = tokenizer.decode(ids, skip_special_tokens=True)
        assert back.replace(" ", "") == sentence.replace(" ", "")


@pytest.mark.parametrize(
    ("sentences", "one", "other"),
    [(GERMAN, "drücken", "drucken"), (GERMAN, "Arme", "arme"), (JAPANESE, "かき", "がき"), (HINDI, "पुल", "पल")],
)
def test_words_that_lower_case_without_accents_would_make_one_are_two(corpus, sentences, one, other):
    data = corpus(sentences)
    assert told_apart(learnt(data), one, other)
    uncased = wordpiece_of(data, 1000, Spelling(), 1.0)
    assert not told_apart(uncased, one, other), "the test would see it"


@pytest.mark.parametrize("sentences", [CHINESE, JAPANESE], ids=["zh", "ja"])
def test_each_chinese_character_is_a_token(corpus, sentences):
    tokenizer = learnt(corpus(sentences))
    characters = [letter for letter in "".join(sentences) if "\u4e00" <= letter <= "\u9fff"]
    assert len(characters) >= 4 and tokenizer.tokenize("".join(characters)) == characters


@pytest.mark.parametrize(
    ("sentences", "languages", "lowercase", "expected", "why"),
    [
        (ENGLISH, None, None, (True, False), "0.0% of the words have letters with accents"),
        (GERMAN, None, None, (False, True), r"\d+\.\d% of the words have letters with accents"),
        (CHINESE, None, None, (False, True), "100.0% of the letters are not Latin"),
        (GERMAN, None, True, (True, True), "of the words have letters with accents"),
        (ENGLISH, None, True, (True, False), "of the words have letters with accents"),
        (ENGLISH, None, False, (False, True), "--no-lowercase asks for it"),
        (ENGLISH, ["de"], None, (False, True), "--languages is de"),
        (GERMAN, ["en"], None, (True, False), "--languages is en"),
        (GERMAN, ["eng"], None, (True, False), "--languages is eng"),
        (GERMAN, ["en", "en"], None, (True, False), "--languages is en,en"),
        (GERMAN, ["de", "en"], True, (True, True), "--languages is de,en"),
    ],
)
def test_the_text_decides_unless_the_user_does(corpus, sentences, languages, lowercase, expected, why):
    found = spelling_of(corpus(sentences), languages, lowercase)
    assert (found.lowercase, found.accents) == expected
    assert re.search(why, found.why)


def test_the_look_at_the_text_is_kept(corpus, tmp_path, monkeypatch):
    data = corpus(GERMAN)
    first = spelling_of(data, None, None)
    monkeypatch.setattr("diffcse_scale.generator.spelling.letters_of", lambda texts: pytest.fail("it looks again"))
    assert spelling_of(data, None, None) == first and len(list((tmp_path / "cache").glob("letters-*.json"))) == 1


@pytest.mark.parametrize("lowercase", [None, True])
def test_a_saved_tokenizer_spells_as_before(corpus, tmp_path, lowercase):
    tokenizer = learnt(corpus(GERMAN), None, lowercase)
    tokenizer.save_pretrained(tmp_path / "folder")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert [loaded.tokenize(sentence) for sentence in GERMAN] == [tokenizer.tokenize(sentence) for sentence in GERMAN]
    assert told_apart(loaded, "drücken", "drucken")
    assert told_apart(loaded, "Arme", "arme") == (lowercase is None)


@pytest.mark.slow
def test_sentence_transformers_reads_the_folder_as_transformers_does(options, tmp_path):
    (tmp_path / "corpus.txt").write_text(
        "\n".join(f"{sentence[:-1]} {number}." for number in range(30) for sentence in GERMAN)
    )
    pretrain_generator(options(steps=1, batch_size=8, languages="de", character_coverage=1.0))
    folder = str(tmp_path / "out")
    other = SentenceTransformer(modules=[Transformer(folder)]).tokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [other.tokenize(sentence) for sentence in GERMAN] == [tokenizer.tokenize(sentence) for sentence in GERMAN]
    assert told_apart(other, "drücken", "drucken") and told_apart(other, "Arme", "arme")
