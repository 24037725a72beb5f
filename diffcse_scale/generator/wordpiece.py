"""A WordPiece vocabulary learnt from the text itself."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from itertools import accumulate, chain
from pathlib import Path

import datasets
from tokenizers import Tokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer

from diffcse_scale.foundation.durable import write_durably
from diffcse_scale.foundation.strict_json import to_json
from diffcse_scale.generator.spelling import Spelling
from diffcse_scale.recipe import DataRecipe
from diffcse_scale.text.cache import cache_folder, fingerprint
from diffcse_scale.text.corpus import corpus_fingerprint, read_corpus
from diffcse_scale.text.prepared import prepared

# part of every cached name: raise it when the algorithm changes
FORMAT = 2
TOGETHER = 1_000_000  # characters that are processed at a time
UNCASED = Spelling()
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4


def wordpiece_of(
    data: DataRecipe, vocab_size: int, spelling: Spelling = UNCASED, character_coverage: float = 0.9995
) -> BertTokenizer:
    """A BERT tokenizer with at most `vocab_size` entries, learnt on a corpus or read from the cache.

    Every rank calls it. One rank learns, and all read from the cache.

    Args:
        spelling: whether capitals and accents are kept; by default both are removed, as in bert-base-uncased.
        character_coverage: share of the text's characters that the vocabulary contains. The rest becomes [UNK],
            because each rare character would cost two entries, and a web corpus has thousands of them.
    """
    settings = (spelling.lowercase, spelling.accents, character_coverage)
    name = fingerprint(FORMAT, corpus_fingerprint(data), data.limit, vocab_size, *settings)

    def learn(fresh: Path) -> None:
        corpus, _ = read_corpus(data)
        columns = [corpus.select_columns(column).rename_column(column, "text") for column in corpus.column_names]
        text = datasets.concatenate_datasets(columns)
        write_durably(to_json(_learn(text, vocab_size, spelling, character_coverage)), fresh)

    cache = cache_folder(data)
    vocabulary = prepared(cache / f"wordpiece-{name}.json", cache, _read, learn)
    return _tokenizer(spelling, vocabulary)


def _tokenizer(spelling: Spelling, vocabulary: dict[str, int] | None = None) -> BertTokenizer:
    return BertTokenizer(vocab=vocabulary, do_lower_case=spelling.lowercase, strip_accents=not spelling.accents)


def _read(file: Path) -> dict[str, int]:
    """Read a vocabulary. Raises ValueError for a damaged file."""
    vocabulary: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
    if list(vocabulary.values()) != list(range(len(vocabulary))) or list(vocabulary)[:5] != SPECIAL_TOKENS:
        raise ValueError("it is no vocabulary")
    return vocabulary


def _learn(text: datasets.Dataset, vocab_size: int, spelling: Spelling, character_coverage: float) -> dict[str, int]:
    """Learn from the column `text`. Returns tokens and their numbers, in order of number."""
    backend = _tokenizer(spelling).backend_tokenizer
    characters, continuing = _characters(text, backend)
    counts = sorted(characters.values(), reverse=True)
    wanted = character_coverage * sum(counts)
    rarest = next(count for count, covered in zip(counts, accumulate(counts), strict=True) if covered >= wanted)
    alphabet = {character for character, count in characters.items() if count >= rarest}
    # The trainer numbers characters inside words in the order of a hash table and breaks ties by number, so each run
    # would learn another vocabulary (tokenizers issue 1794). As special tokens they always get the same numbers.
    inside = [f"##{character}" for character in sorted(continuing & alphabet)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS + inside,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(_batches(text), trainer=trainer, length=len(text))
    return dict(sorted(backend.get_vocab().items(), key=lambda entry: entry[1]))


def _characters(text: datasets.Dataset, backend: Tokenizer) -> tuple[collections.Counter[str], set[str]]:
    """Counts of all characters, and the set of characters that occur after the first position of a word."""
    words: collections.Counter[str] = collections.Counter()
    for sentences in _batches(text):
        words.update(backend.normalizer.normalize_str(" ".join(sentences)).split())
    characters: collections.Counter[str] = collections.Counter()
    continuing: set[str] = set()
    for word, count in words.items():
        for piece, _ in backend.pre_tokenizer.pre_tokenize_str(word):
            continuing.update(piece[1:])
            for character in piece:
                characters[character] += count
    return characters, continuing


def _batches(text: datasets.Dataset) -> Iterator[list[str]]:
    """Batches of texts with about a million characters each. Longer texts are cut between words, which is harmless."""
    batch: list[str] = []
    size = 0
    for rows in text.iter(batch_size=100):
        for piece in chain.from_iterable(map(pieces, rows["text"])):
            batch.append(piece)
            size += len(piece)
            if size >= TOGETHER:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most TOGETHER characters, at white space if there is any."""
    start = 0
    while len(text) - start > TOGETHER:
        end = max(text.rfind(blank, start, start + TOGETHER) for blank in " \n\t")
        end = end if end > start else start + TOGETHER
        yield text[start:end]
        start = end
    yield text[start:]
