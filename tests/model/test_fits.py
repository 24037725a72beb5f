"""A tokenizer puts the token there that the pooling takes, and a network has what it needs to read it."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.fits import check_first_token, check_fits
from tests.support.tiny_models import FAMILIES, SPECIAL, tiny_backbone, tiny_tokenizer


def test_the_first_token_is_not_the_first_word() -> None:
    own, complete = tiny_tokenizer().backend_tokenizer, tiny_tokenizer()
    own.post_processor = None
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    without = PreTrainedTokenizerFast(tokenizer_object=own, **names)
    check_first_token(complete, "cls", "mine")
    check_first_token(without, "mean", "mine")
    with pytest.raises(InputError, match=r"mine puts no token before .* first word; add .* or set model\.pooling=mean"):
        check_first_token(without, "cls", "mine")


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_that_are_counted_from_the_padding_need_its_id(family: str) -> None:
    """Families that count from 0 need none."""
    without, tokenizer = tiny_backbone(family, pad_token_id=None), tiny_tokenizer()
    ids = torch.tensor([[2, 5, 6, 3]])
    try:
        without(input_ids=ids)
    except TypeError:
        with pytest.raises(InputError, match=r"set pad_token_id there \(its tokenizer pads with 0\)"):
            check_fits(without, tokenizer, "mine", {})
        check_fits(tiny_backbone(family), tokenizer, "mine", {})
    else:
        check_fits(without, tokenizer, "mine", {})
