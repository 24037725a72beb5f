"""A tokenizer puts the token there that the pooling takes."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from diffcse_scale.foundation.errors import InputError
from diffcse_scale.model.fits import check_first_token
from tests.support.tiny_models import SPECIAL, tiny_tokenizer


def test_the_first_token_is_not_the_first_word() -> None:
    own, complete = tiny_tokenizer().backend_tokenizer, tiny_tokenizer()
    own.post_processor = None
    names = {f"{token.strip('[]').lower()}_token": token for token in SPECIAL}
    without = PreTrainedTokenizerFast(tokenizer_object=own, **names)
    check_first_token(complete, "cls", "mine")
    check_first_token(without, "mean", "mine")
    with pytest.raises(InputError, match=r"mine puts no token before .* first word; add .* or set model\.pooling=mean"):
        check_first_token(without, "cls", "mine")
