"""The tokenizers of the networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from diffcse_scale.foundation.errors import InputError, one_line


@dataclass(frozen=True)
class Tokenizers:
    """The encoder's tokenizer, and the one that generator and discriminator share.

    Both are the same object unless the discriminator is another network (`model.discriminator`). In that case every
    sentence is tokenized twice.
    """

    encoder: PreTrainedTokenizerBase
    discriminator: PreTrainedTokenizerBase

    @classmethod
    def shared(cls, tokenizer: PreTrainedTokenizerBase) -> Tokenizers:
        """One tokenizer for all networks."""
        return cls(tokenizer, tokenizer)

    @property
    def streams(self) -> list[PreTrainedTokenizerBase]:
        """The distinct tokenizers, the encoder's first. Each makes a stream of tokens from every sentence."""
        return [self.encoder] if self.discriminator is self.encoder else [self.encoder, self.discriminator]


@contextmanager
def unknown_told(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Inside, where texts are tokenized, a word that `tokenizer` has no token for becomes an InputError.

    Raises:
        InputError: the word is not in the vocabulary, and the token for such words is not either.
    """
    try:
        yield
    except Exception as error:
        if type(error) is not Exception:  # `tokenizers` raises no other kind
            raise
        raise InputError(
            f"Tokenizer of {tokenizer.name_or_path} cannot read a word that is not in its vocabulary "
            f"({one_line(error)}); give it a vocabulary with its unknown token."
        ) from None


def surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """How many special tokens `tokenizer` puts before a text, and how many after it.

    Raises:
        InputError: as `unknown_told`, or it finds no token in a text.
    """
    with unknown_told(tokenizer):
        mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    inside = [place for place, special in enumerate(mask) if not special]
    if not inside:
        raise InputError(
            f"Tokenizer of {tokenizer.name_or_path} finds no token in 'a' and has none for what it does not know; give "
            "it an unknown token."
        )
    return inside[0], len(mask) - 1 - inside[-1]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of special tokens, in ascending order: those that have a name, and those that are put around a text.

    A post-processor may put [CLS] and [SEP] there though the tokenizer was not told that they are cls and sep tokens.
    """
    head, tail = surroundings(tokenizer)
    ids = tokenizer("a")["input_ids"]
    return sorted({*tokenizer.all_special_ids, *ids[:head], *ids[len(ids) - tail :]})


def truncates_left(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `tokenizer` keeps the end of a long text (`truncation_side` of its configuration), not the beginning."""
    return getattr(tokenizer, "truncation_side", "right") == "left"  # other kinds of tokenizers lack the attribute


def known_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that stand for a token, in ascending order; there may be gaps."""
    return sorted(set(tokenizer.get_vocab().values()))
