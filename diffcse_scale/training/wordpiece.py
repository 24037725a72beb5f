"""A WordPiece vocabulary learnt from the text itself."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import datasets
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
    characters: collections.Counter[str] = collections.Counter()
    for sentences in _batches(text):
        characters.update(backend.normalizer.normalize_str(" ".join(sentences)))
    del characters[" "]
    missing, alphabet = characters.total() * character_coverage, 0
    for _, count in characters.most_common():
        if missing <= 0:
            break
        missing, alphabet = missing - count, alphabet + 1
    trainer = WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, limit_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_batches(text), trainer=trainer, length=len(text))
    vocabulary = sorted(backend.get_vocab().items(), key=lambda entry: entry[1])
    return BertTokenizer(vocab=dict(vocabulary), do_lower_case=lowercase)


def _batches(text: datasets.Dataset) -> Iterator[list[str]]:
    for rows in text.iter(batch_size=10_000):
        yield rows["text"]
