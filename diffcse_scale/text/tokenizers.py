"""Which tokenizer reads the sentences for which network."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokenizers:
    """The encoder's, and the one that generator and discriminator share.

    They are one and the same object unless the discriminator is another network (`model.discriminator`); then every
    sentence is tokenized twice.
    """

    encoder: PreTrainedTokenizerBase
    discriminator: PreTrainedTokenizerBase

    @classmethod
    def shared(cls, tokenizer: PreTrainedTokenizerBase) -> Tokenizers:
        """One for all."""
        return cls(tokenizer, tokenizer)

    @property
    def streams(self) -> list[PreTrainedTokenizerBase]:
        """The different ones, the encoder's first: each makes a stream of tokens from every sentence."""
        return [self.encoder] if self.discriminator is self.encoder else [self.encoder, self.discriminator]


def known_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that stand for a token, ascending; there may be gaps."""
    return sorted(set(tokenizer.get_vocab().values()))
