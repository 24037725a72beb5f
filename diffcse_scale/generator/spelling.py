"""Whether a learnt vocabulary keeps capitals and accents: as the user says, or else as suits the text.

In most languages a word without its accents is another word (German `drücken`, to press; `drucken`, to print) or not a
word: many Hindi vowels are marks that count as accents. In English little is lost.
"""

from __future__ import annotations

import collections
import json
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets

from diffcse_scale.foundation.durable import write_durably
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.cache import cache_folder, fingerprint
from diffcse_scale.text.corpus import corpus_fingerprint, read_corpus
from diffcse_scale.text.prepared import prepared

FORMAT = 1  # part of the cached name: raise it when counting changes
ROWS, LONGEST = 10_000, 1_000  # sampled rows, evenly spaced in the corpus, and characters per row
FEW = 0.01
ENGLISH = {"en", "eng"}  # ISO 639-1 and 639-3


@dataclass(frozen=True)
class Spelling:
    """How the tokenizer normalizes text: lower case, accents.

    Attributes:
        lowercase: whether text is lower-cased.
        accents: whether accents, and the marks of other scripts, are kept.
        why: the reason, in the form that continues a sentence.
    """

    lowercase: bool = True
    accents: bool = False
    why: str = "it is asked for"

    def __str__(self) -> str:
        if self.lowercase and not self.accents:
            return f"lower-cased and without accents, because {self.why}; --no-lowercase keeps both"
        if self.lowercase:
            return f"lower-cased, accents are kept, because {self.why}"
        return f"capitals and accents are kept, because {self.why}; --lowercase keeps only accents"


def spelling_of(data: DataRecipe, languages: list[str] | None, lowercase: bool | None) -> Spelling:
    """The spelling that suits a corpus, from `languages` or else from its text; `lowercase` decides about capitals.

    Every rank calls it. One rank reads the text, and all read its result from the cache.
    """
    if languages is not None:
        accents, why = not set(languages) <= ENGLISH, f"--languages is {','.join(languages)}"
    elif lowercase is False:
        accents, why = True, "--no-lowercase asks for it"
    else:
        found = _prepared_letters(data)
        accents = found.accented >= FEW or found.other_scripts >= FEW
        why = str(found)
    return Spelling(not accents if lowercase is None else lowercase, accents or lowercase is False, why)


@dataclass(frozen=True)
class Letters:
    """The share of words that have an accented letter, and the share of letters that are not Latin."""

    accented: float
    other_scripts: float

    def __str__(self) -> str:
        if self.other_scripts >= FEW:
            return f"{self.other_scripts:.1%} of the letters are not Latin"
        return f"{self.accented:.1%} of the words have letters with accents"


def letters_of(texts: list[str]) -> Letters:
    """Count accented words and letters of other scripts.

    >>> letters_of(["Wir drücken den Knopf"]), letters_of(["三つの文"]).other_scripts
    (Letters(accented=0.25, other_scripts=0.0), 1.0)
    """
    words = collections.Counter(word for text in texts for word in text.split() if any(map(str.isalpha, word)))
    accented = sum(count for word, count in words.items() if _has_marks(word))
    letters: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for letter in filter(str.isalpha, word):
            letters[letter] += count
    others = sum(count for letter, count in letters.items() if not unicodedata.name(letter, "").startswith("LATIN"))
    return Letters(accented / max(1, words.total()), others / max(1, letters.total()))


def _has_marks(word: str) -> bool:
    """Whether a word has accents or other combining marks."""
    return any(unicodedata.category(letter) == "Mn" for letter in unicodedata.normalize("NFD", word))


def _prepared_letters(data: DataRecipe) -> Letters:
    def count(fresh: Path) -> None:
        corpus, _ = read_corpus(data)
        write_durably(to_json(asdict(letters_of(_sample(corpus)))), fresh)

    cache = cache_folder(data)
    name = fingerprint(FORMAT, corpus_fingerprint(data), data.limit)
    return prepared(cache / f"letters-{name}.json", cache, lambda file: Letters(**json.loads(file.read_text())), count)


def _sample(corpus: datasets.Dataset) -> list[str]:
    rows = corpus[range(0, len(corpus), max(1, len(corpus) // ROWS))]
    return [text[:LONGEST] for column in rows.values() for text in column]
