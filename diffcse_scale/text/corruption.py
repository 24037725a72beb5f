"""Masks tokens for the generator, as a function of each token's place in the run."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from diffcse_kernels import counter_uniform
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffcse_scale.foundation.errors import InputError, quoted
from diffcse_scale.text.tokenizers import known_ids, special_ids

# shares of the selected tokens; the rest stay unchanged (BERT; official program's collator)
MASKED = 0.8
RANDOM = 0.1

# longer than any sequence, and more draws than a token makes, so that no two draws of a run share a counter
MAX_POSITIONS = 1 << 20
_DRAWS = 4


@dataclass(frozen=True)
class Corruption:
    """Selects tokens and replaces them: 80% by the mask, 10% by a random token, 10% by themselves.

    Special tokens and padding are never selected. The corruption of a row depends neither on its batch, chunk
    or rank nor on its padding.

    Args:
        vocabulary: random tokens are drawn from range(vocabulary), special ones included (official program).
        special_ids: never selected.
    """

    masking_ratio: float
    mask_id: int
    vocabulary: int
    special_ids: tuple[int, ...]
    seed: int
    _special: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        special = torch.zeros(self.vocabulary, dtype=torch.bool)
        special[torch.tensor(self.special_ids, dtype=torch.long)] = True
        object.__setattr__(self, "_special", special)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, masking_ratio: float, seed: int) -> Corruption:
        """The corruption with the mask, special tokens and vocabulary of `tokenizer`.

        Raises:
            InputError: the tokenizer has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise InputError(
                f"The tokenizer {quoted(tokenizer.name_or_path)} has no mask token, so no generator can edit its "
                "sentences; choose a masked language model, or set objective.rtd_weight=0."
            )
        specials = tuple(special_ids(tokenizer))
        return cls(masking_ratio, tokenizer.mask_token_id, known_ids(tokenizer)[-1] + 1, specials, seed)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, row_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Corrupt some rows.

        Args:
            input_ids: int64 [..., L].
            attention_mask: int64 [..., L].
            row_ids: int64 [...], a number for each row that is unique in the run.

        Returns:
            The corrupted ids, int64 [..., L], and the selected positions, ascending indices into the
            flattened `input_ids`, int64 [K].
        """
        places = torch.arange(input_ids.shape[-1], dtype=torch.int64)
        counters = ((row_ids[..., None] * MAX_POSITIONS + places) * _DRAWS).flatten()
        eligible = (attention_mask.bool() & ~self._special[input_ids]).flatten()
        chosen = eligible & (counter_uniform(self.seed, counters) < self.masking_ratio)
        selected = chosen.nonzero().flatten()
        counters = counters[selected]
        kind = counter_uniform(self.seed, counters + 1)
        random_ids = (counter_uniform(self.seed, counters + 2) * self.vocabulary).long()
        corrupted_ids = input_ids.flatten()
        replacement = torch.where(kind < MASKED + RANDOM, random_ids, corrupted_ids[selected])
        replacement = replacement.masked_fill(kind < MASKED, self.mask_id)
        return corrupted_ids.index_copy(0, selected, replacement).view_as(input_ids), selected
