"""A WordPiece vocabulary learnt from the text itself."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from itertools import accumulate

import datasets
from tokenizers import Tokenizer
from tokenizers.trainers import WordPieceTrainer
from transformers import BertTokenizer

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # ids 0 to 4


def learn_wordpiece(
    text: datasets.Dataset, vocab_size: int, lowercase: bool = True, character_coverage: float = 0.9995
) -> BertTokenizer:
    """A tokenizer of BERT's form with at most `vocab_size` entries, learnt on the column `text`.

    Args:
        lowercase: also removes accents, as bert-base-uncased does.
        character_coverage: share of the text that the characters of the vocabulary spell. The rest becomes
            [UNK]: each rare character would cost two entries, and a web corpus has thousands.
    """
    backend = BertTokenizer(do_lower_case=lowercase).backend_tokenizer
    characters, continuing = _characters(text, backend)
    counts = sorted(characters.values(), reverse=True)
    wanted = character_coverage * sum(counts)
    rarest = next(count for count, covered in zip(counts, accumulate(counts), strict=True) if covered >= wanted)
    alphabet = {character for character, count in characters.items() if count >= rarest}
    # The trainer numbers the characters inside words in the order of a hash table and breaks ties by number, so that
    # each run learns another vocabulary (tokenizers issue 1794). Named beforehand, they have the same numbers always.
    inside = [f"##{character}" for character in sorted(continuing & alphabet)]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS + inside,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(_batches(text), trainer=trainer, length=len(text))
    vocabulary = sorted(backend.get_vocab().items(), key=lambda entry: entry[1])
    return BertTokenizer(vocab=dict(vocabulary), do_lower_case=lowercase)


def _characters(text: datasets.Dataset, backend: Tokenizer) -> tuple[collections.Counter[str], set[str]]:
    """How often each character occurs, and those that occur after the first of a word."""
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
    for rows in text.iter(batch_size=10_000):
        yield rows["text"]
